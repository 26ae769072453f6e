//! Sets `TWINCAST_BUILT` to the build time, in seconds since 1970: a clock before the build time is
//! wrong. `SOURCE_DATE_EPOCH` overrides the build time, for reproducible builds.

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
