//! URLs of servers. Parts ignored by the library are refused.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, parse_redis_url};

/// A URL without ignored parts.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) info: ConnectionInfo,
    /// Whether the URL names a port; without one, `info` has 6379.
    pub(crate) has_port: bool,
}

impl Parsed {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    pub(crate) fn is_socket(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::Unix(_))
    }

    pub(crate) fn has_database(&self) -> bool {
        self.info.redis_settings().db() != 0
    }

    pub(crate) fn has_password(&self) -> bool {
        self.info.redis_settings().password().is_some()
    }
}

/// Parses the URL of a server. Errors show no text of the URL, because the text may be a password.
pub(crate) fn parse(url: &str) -> Result<Parsed, String> {
    const NO_URL: &str = "it is not a URL of Redis: write \
         redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// for TLS, or \
         unix:///PATH?db=DATABASE&user=USER&pass=PASSWORD; in a user and a password, the \
         characters / ? # @ : % are written %2F %3F %23 %40 %3A %25";
    let given = parse_redis_url(url).ok_or(NO_URL)?;
    if given.fragment().is_some() {
        return Err(
            "it has a #, and URLs of Redis have no fragment; in a password, write %23".into(),
        );
    }
    if given.scheme().ends_with("unix") {
        if given.has_host() || !given.username().is_empty() {
            return Err("a socket has no host: unix:///PATH?user=USER&pass=PASSWORD".into());
        }
        let mut seen = Vec::new();
        for (key, _) in given.query_pairs() {
            if !["db", "user", "pass"].contains(&&*key) || seen.contains(&key) {
                return Err("the parameters of a socket are db, user and pass, each once".into());
            }
            seen.push(key);
        }
    } else if given.query().is_some() {
        return Err(
            "it has parameters (after ?), which are not allowed; give the database as the path, as \
             in redis://HOST/2; in a password, write ? as %3F"
                .into(),
        );
    }
    let has_port = given.port().is_some();
    let info = given
        .into_connection_info()
        .map_err(|error| error.to_string())?;
    let settings = info.redis_settings();
    if settings.username().is_some() && settings.password().is_none() {
        return Err("it has a user, but no password".into());
    }
    if settings.db() < 0 {
        return Err("the number of the database is negative".into());
    }
    Ok(Parsed { info, has_port })
}

/// Splits a comma-separated list of URLs. A password may contain commas.
pub(crate) fn split(list: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for piece in list.split(',') {
        let scheme = piece
            .trim_start()
            .split_once("://")
            .map(|(scheme, _)| scheme);
        let begins =
            scheme.is_some_and(|it| it.bytes().all(|b| b.is_ascii_alphabetic() || b == b'+'));
        match urls.last_mut() {
            Some(last) if !begins => last.extend([",", piece]),
            _ => urls.push(piece.to_owned()),
        }
    }
    urls.iter().map(|url| url.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Address, user, password and database; or a part of the error.
    type Expected<'a> = Result<(&'a str, Option<&'a str>, Option<&'a str>, i64), &'a str>;

    #[test]
    fn url_is_parsed_completely_or_refused_with_reason() {
        let table: [(&str, Expected<'_>); 36] = [
            ("redis://h", Ok(("h:6379", None, None, 0))),
            ("redis://h/", Ok(("h:6379", None, None, 0))),
            ("redis://h:7/3", Ok(("h:7", None, None, 3))),
            ("redis://[::1]:7/3", Ok(("::1:7", None, None, 3))),
            ("redis://:p@h", Ok(("h:6379", None, Some("p"), 0))),
            ("redis://u:p@h/1", Ok(("h:6379", Some("u"), Some("p"), 1))),
            ("REDIS://u:p@h/1", Ok(("h:6379", Some("u"), Some("p"), 1))),
            ("rediss://u:p@h:7", Ok(("h:7", Some("u"), Some("p"), 0))),
            ("valkey://u:p@h:7", Ok(("h:7", Some("u"), Some("p"), 0))),
            ("valkeys://u:p@h:7", Ok(("h:7", Some("u"), Some("p"), 0))),
            ("redis://u:p,q@h", Ok(("h:6379", Some("u"), Some("p,q"), 0))),
            (
                "redis://u:p=+&;!*@h",
                Ok(("h:6379", Some("u"), Some("p=+&;!*"), 0)),
            ),
            (
                "redis://u%40x:p%2F%3F%23%25%3A%40@h",
                Ok(("h:6379", Some("u@x"), Some("p/?#%:@"), 0)),
            ),
            (
                "redis://%C3%BC:%C3%A9@h",
                Ok(("h:6379", Some("ü"), Some("é"), 0)),
            ),
            ("redis://ü:é@h", Ok(("h:6379", Some("ü"), Some("é"), 0))),
            ("redis://u:50%@h", Ok(("h:6379", Some("u"), Some("50%"), 0))),
            ("redis://u:p@q@h", Ok(("h:6379", Some("u"), Some("p@q"), 0))),
            ("unix:///run/r.sock", Ok(("/run/r.sock", None, None, 0))),
            (
                "redis+unix:///run/r.sock",
                Ok(("/run/r.sock", None, None, 0)),
            ),
            (
                "unix:///run/my%20r.sock?db=2&user=u&pass=p%26%2Cq",
                Ok(("/run/my r.sock", Some("u"), Some("p&,q"), 2)),
            ),
            ("redis://u:%FF@h", Err("not valid UTF-8")),
            ("redis://h?db=2", Err("as in redis://HOST/2")),
            ("REDISS://h?db=2", Err("as in redis://HOST/2")),
            ("redis://u:p?q@h", Err("%3F")),
            ("rediss://h/1#insecure", Err("%23")),
            ("unix:///s#x", Err("%23")),
            ("redis://u:p/q@h", Err("%2F")),
            ("redis://u@h", Err("no password")),
            ("redis://h/one", Err("Invalid database number")),
            ("redis://h/-1", Err("negative")),
            ("redis://h/1/2", Err("Invalid database number")),
            ("redis://", Err("")),
            ("unix://h/run/r.sock", Err("a socket has no host")),
            ("unix:///s?database=2", Err("db, user and pass")),
            ("unix:///s?db=1&db=2", Err("each once")),
            ("unix:///s?user=u", Err("no password")),
        ];
        for (url, expected) in table {
            let found = parse(url).map(|parsed| parsed.info);
            match (&found, expected) {
                (Ok(info), Ok((address, user, password, database))) => {
                    let settings = info.redis_settings();
                    assert_eq!(info.addr().to_string(), address, "{url}");
                    assert_eq!(settings.username(), user, "{url}");
                    assert_eq!(settings.password(), password, "{url}");
                    assert_eq!(settings.db(), database, "{url}");
                    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
                    assert_eq!(
                        is_tls,
                        url.starts_with("rediss") || url.starts_with("valkeys")
                    );
                }
                (Err(error), Err(named)) => assert!(error.contains(named), "{url}: {error}"),
                _ => panic!("{url}: {found:?} and not {expected:?}"),
            }
        }
        for url in [
            "http://h",
            "tcp://h",
            "h:6379",
            "redis+sentinel://h/m/0",
            "",
        ] {
            assert!(
                parse(url).unwrap_err().contains("not a URL of Redis"),
                "{url}"
            );
        }
    }

    #[test]
    fn errors_do_not_reveal_url_secrets() {
        for url in [
            "redis://u:secret/s@h",
            "redis://u:secret?s@h",
            "redis://u:secret#s@h",
            "redis://u:p@h/secret",
            "redis://secret@h",
            "unix:///s?secret=1",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn list_is_split_at_the_start_of_each_url() {
        for (list, urls) in [
            ("redis://:a,b@x", vec!["redis://:a,b@x"]),
            (
                " redis://u:a,b@x, rediss://u:a,b@y:1 ,redis://z",
                vec!["redis://u:a,b@x", "rediss://u:a,b@y:1", "redis://z"],
            ),
            ("x,y", vec!["x,y"]),
            ("", vec![""]),
        ] {
            assert_eq!(split(list), urls);
        }
    }
}
