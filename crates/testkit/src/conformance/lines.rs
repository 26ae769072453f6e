//! Cases: the lines of groups.

use twincast_core::group::Line;
use twincast_core::ids::{GroupName, Version};
use twincast_core::time::Timestamp;

use super::Subject;
use crate::assert_refused;
use crate::build::name;

fn group(text: &str) -> GroupName {
    GroupName::new(text).expect("a name")
}

fn joined(line: &Line, text: &str) -> Line {
    let next = line.with(&name(text), Version(1), true, &[], Timestamp(5));
    next.expect("there is room")
}

/// A group that nobody has joined has an empty line; each group has its own.
pub async fn a_line_is_kept_for_each_group(subject: Subject) {
    let store = &*subject.store;
    let (one, other) = (group("firmware"), group("config"));
    assert_eq!(store.line(&one).await.unwrap(), Line::default());
    let line = joined(
        &joined(
            &Line {
                version: Version(0),
                ..Line::default()
            },
            "a",
        ),
        "b",
    );
    let line = Line {
        version: Version(1),
        ..line
    };
    store.save_line(&one, &line).await.unwrap();
    assert_eq!(store.line(&one).await.unwrap(), line);
    assert_eq!(store.line(&other).await.unwrap(), Line::default());
    let empty = Line {
        version: Version(2),
        members: Vec::new(),
    };
    store.save_line(&one, &empty).await.unwrap();
    assert_eq!(store.line(&one).await.unwrap(), empty);
}

/// Of two that have seen the same line, the second is refused.
pub async fn a_line_is_changed_by_comparing(subject: Subject) {
    let store = &*subject.store;
    let firmware = group("firmware");
    let seen = store.line(&firmware).await.unwrap();
    let (a, b) = (joined(&seen, "a"), joined(&seen, "b"));
    store.save_line(&firmware, &a).await.unwrap();
    assert_refused!(store.save_line(&firmware, &b).await, Superseded);
    assert_refused!(store.save_line(&firmware, &a).await, Superseded);
    assert_eq!(store.line(&firmware).await.unwrap(), a);
    let both = joined(&a, "b");
    store.save_line(&firmware, &both).await.unwrap();
    assert_eq!(store.line(&firmware).await.unwrap(), both);
    // A version that was passed over is none that anybody has seen.
    let ahead = Line {
        version: Version(9),
        ..both.clone()
    };
    assert_refused!(store.save_line(&firmware, &ahead).await, Superseded);
}

/// Of many at the same time, one at a time gets through, and in the end all are in it.
pub async fn nobody_is_lost_from_a_line(subject: Subject) {
    let (store, firmware) = (&subject.store, &group("firmware"));
    let joins = (0..8).map(|number| async move {
        let name = number.to_string();
        loop {
            let next = joined(&store.line(firmware).await.unwrap(), &name);
            if store.save_line(firmware, &next).await.is_ok() {
                return;
            }
        }
    });
    futures::future::join_all(joins).await;
    let line = store.line(firmware).await.unwrap();
    assert_eq!((line.members.len(), line.version), (8, Version(8)));
}
