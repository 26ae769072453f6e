//! Writes when the program is built, in seconds since 1970, into `TWINCAST_BUILT`: no clock is right that is before it.
//! `SOURCE_DATE_EPOCH` overrides it, for builds that can be repeated bit by bit.

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .map(|it| it.as_secs().to_string());
    let built = std::env::var("SOURCE_DATE_EPOCH")
        .or(now)
        .unwrap_or_else(|_| "0".to_owned());
    println!("cargo:rustc-env=TWINCAST_BUILT={built}");
}
