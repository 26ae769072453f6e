use proptest::prelude::*;

use super::*;
use crate::spec::Document;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// Parses a schedule from YAML, and asserts that there are no problems.
fn schedule(yaml: &str) -> Schedule {
    let schedule: Schedule = Document::parse("x.yaml", yaml).unwrap().read().unwrap();
    assert_eq!(schedule.problems(), []);
    schedule
}

fn time(text: &str) -> Timestamp {
    serde_json::from_value(text.into()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn open(until: &str) -> ScheduleState {
    ScheduleState::Open {
        until: Some(time(until)),
    }
}

fn closed(until: &str, why: Closed) -> ScheduleState {
    ScheduleState::Closed {
        until: Some(time(until)),
        why,
    }
}

fn frozen(reason: &str) -> Closed {
    Closed::Frozen {
        reason: Some(reason.to_owned()),
    }
}

/// Returns `count` open intervals from `from` on, as given by `at`.
fn stretches(schedule: &Schedule, from: &str, count: usize) -> Vec<(String, String)> {
    let mut now = time(from);
    let mut found = Vec::new();
    while found.len() < count {
        now = match schedule.state_at(now, None) {
            ScheduleState::Open { until: Some(until) } => {
                found.push((now.to_string(), until.to_string()));
                until
            }
            ScheduleState::Closed {
                until: Some(until), ..
            } => until,
            last => panic!("{now}: {last:?}"),
        };
    }
    found
}

fn assert_stretches(yaml: &str, from: &str, expected: &[(&str, &str)]) {
    let found = stretches(&schedule(yaml), from, expected.len());
    let found: Vec<_> = found
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert_eq!(found, expected, "{yaml}");
}

#[test]
fn schedule_reads_and_writes() {
    let yaml = "\
start_at: 2026-11-02T08:00:00+01:00
windows:
  - {days: [mon, tue], from: 22:00, for: 4h}
  - {from: 06:30, for: 90m}
zone: europe/berlin
zone_tag: location.zone
unknown_zone: skip
freeze:
  - {from: 2026-12-24, to: 2026-12-26, reason: Christmas}
  - {from: 2027-01-01}
";
    let json = serde_json::json!({
        "start_at": "2026-11-02T07:00:00Z",
        "windows": [
            {"days": ["mon", "tue"], "from": "22:00", "for": "4h"},
            {"from": "06:30", "for": "1h 30m"},
        ],
        "zone": "Europe/Berlin",
        "zone_tag": "location.zone",
        "unknown_zone": "skip",
        "freeze": [
            {"from": "2026-12-24", "to": "2026-12-26", "reason": "Christmas"},
            {"from": "2027-01-01"},
        ],
    });
    let read = schedule(yaml);
    assert_eq!(serde_json::to_value(&read).unwrap(), json);
    assert_eq!(serde_json::from_value::<Schedule>(json).unwrap(), read);
    assert_eq!(
        serde_json::to_value(schedule("{}")).unwrap(),
        serde_json::json!({})
    );
}

#[test]
fn unreadable_schedules_are_refused_with_reason() {
    for (yaml, expected) in [
        ("zone: Berlin", "zone: \"Berlin\" is not a time zone"),
        (
            "unknown_zone: ignore",
            "unknown_zone: \"ignore\" is not one of default, skip",
        ),
        (
            "zone_tag: a b",
            "zone_tag: tag \"a b\" is not a valid tag path",
        ),
        ("windows: [{for: 1h}]", "windows[0].from: is missing"),
        (
            "windows: [{from: 7:00, for: 1h}]",
            "windows[0].from: \"7:00\" is not a time of day",
        ),
        (
            "windows: [{from: 07:00, for: 1h, day: [mon]}]",
            "windows[0].day: is not a field here",
        ),
        (
            "windows: [{from: 07:00, for: 1h, days: [monday]}]",
            "windows[0].days[0]: \"monday\" is not one of",
        ),
        (
            "freeze: [{from: 2026-02-30}]",
            "freeze[0].from: \"2026-02-30\" is not a date",
        ),
        ("start_at: 1969-01-01T00:00:00Z", "is before 1970"),
    ] {
        let document = Document::parse("x.yaml", yaml).unwrap();
        let error = document.read::<Schedule>().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn problems_name_their_field() {
    let yaml = "\
start_at: 2206-01-01T00:00:00Z
windows:
  - {from: 07:00, for: 59s}
  - {from: 07:00, for: 1m}
  - {from: 07:00, for: 7d}
  - {from: 07:00, for: 7d 1ms, days: [mon, tue, mon]}
freeze:
  - {from: 2026-12-24, to: 2026-12-24}
  - {from: 2026-12-24, to: 2026-12-23}
";
    let mut schedule: Schedule = Document::parse("x.yaml", yaml).unwrap().read().unwrap();
    let expected = [
        (
            "start_at",
            "is 2206-01-01T00:00:00Z; from 2020 to 2099 is allowed",
        ),
        (
            "windows[0].for",
            "59s is out of bounds; 1m to 7d is allowed",
        ),
        ("windows[3].days[2]", "mon is named twice"),
        (
            "windows[3].for",
            "7d 1ms is out of bounds; 1m to 7d is allowed",
        ),
        ("freeze[1].to", "2026-12-23 is before `from`, 2026-12-24"),
    ]
    .map(|(field, message)| (field.to_owned(), message.to_owned()));
    assert_eq!(schedule.problems(), expected);

    // An unchecked schedule still gives results.
    assert!(matches!(
        schedule.state_at(time("2026-12-23T12:00:00Z"), None),
        ScheduleState::Closed {
            why: Closed::NotStarted,
            ..
        }
    ));

    schedule.start_at = None;
    schedule.unknown_zone = UnknownZone::Skip;
    schedule.windows = vec![schedule.windows[1].clone(); MAX_WINDOWS + 1];
    schedule.freeze = vec![schedule.freeze[0].clone(); MAX_FREEZES + 1];
    let fields: Vec<_> = schedule
        .problems()
        .into_iter()
        .map(|(field, _)| field)
        .collect();
    assert_eq!(fields, ["windows", "freeze", "unknown_zone"]);
}

#[test]
fn closed_reasons_are_described() {
    assert_eq!(Closed::NotStarted.to_string(), "before its start");
    assert_eq!(Closed::OutsideWindow.to_string(), "outside its windows");
    assert_eq!(frozen("Christmas").to_string(), "frozen: Christmas");
    assert_eq!(Closed::Frozen { reason: None }.to_string(), "frozen");
}

#[test]
fn empty_schedule_is_always_open() {
    for now in [Timestamp(0), time("2026-10-25T01:00:00Z"), Timestamp::MAX] {
        assert_eq!(
            schedule("{}").state_at(now, None),
            ScheduleState::Open { until: None }
        );
    }
}

#[test]
fn windows_are_half_open_to_the_millisecond() {
    let daily = schedule("windows: [{from: 22:00, for: 4h}]");
    for (now, expected) in [
        (
            "2026-06-01T21:59:59.999Z",
            closed("2026-06-01T22:00:00Z", Closed::OutsideWindow),
        ),
        ("2026-06-01T22:00:00Z", open("2026-06-02T02:00:00Z")),
        ("2026-06-02T00:00:00Z", open("2026-06-02T02:00:00Z")),
        ("2026-06-02T01:59:59.999Z", open("2026-06-02T02:00:00Z")),
        (
            "2026-06-02T02:00:00Z",
            closed("2026-06-02T22:00:00Z", Closed::OutsideWindow),
        ),
    ] {
        assert_eq!(daily.state_at(time(now), None), expected, "{now}");
    }
}

#[test]
fn windows_start_on_given_days_and_may_cross_midnight() {
    // 2026-06-05 is a Friday.
    assert_stretches(
        "windows: [{days: [fri, mon], from: 22:00, for: 4h}]",
        "2026-06-05T12:00:00Z",
        &[
            ("2026-06-05T22:00:00Z", "2026-06-06T02:00:00Z"),
            ("2026-06-08T22:00:00Z", "2026-06-09T02:00:00Z"),
            ("2026-06-12T22:00:00Z", "2026-06-13T02:00:00Z"),
        ],
    );
    // A window over several midnights.
    assert_stretches(
        "windows: [{days: [fri], from: 18:00, for: 2d 12h}]",
        "2026-06-07T23:00:00Z",
        &[
            ("2026-06-07T23:00:00Z", "2026-06-08T06:00:00Z"),
            ("2026-06-12T18:00:00Z", "2026-06-15T06:00:00Z"),
        ],
    );
}

#[test]
fn touching_windows_are_merged() {
    assert_stretches(
        "windows: [{from: 12:00, for: 2h}, {from: 10:00, for: 2h}, {from: 09:00, for: 90m}, {from: 14:01, for: 1h}]",
        "2026-06-05T00:00:00Z",
        &[
            ("2026-06-05T09:00:00Z", "2026-06-05T14:00:00Z"),
            ("2026-06-05T14:01:00Z", "2026-06-05T15:01:00Z"),
        ],
    );
    // A short window inside a long window.
    assert_stretches(
        "windows: [{days: [sat], from: 08:00, for: 2d}, {from: 12:00, for: 1h}]",
        "2026-06-05T23:00:00Z",
        &[
            ("2026-06-06T08:00:00Z", "2026-06-08T08:00:00Z"),
            ("2026-06-08T12:00:00Z", "2026-06-08T13:00:00Z"),
        ],
    );
}

#[test]
fn windows_that_fill_the_week_never_close() {
    let now = time("2026-06-05T00:00:00Z");
    for yaml in [
        "windows: [{from: 00:00, for: 1d}]",
        "windows: [{days: [wed], from: 03:00, for: 7d}]",
        "{windows: [{from: 06:00, for: 12h}, {from: 18:00, for: 12h}], zone: Asia/Tokyo}",
    ] {
        assert_eq!(
            schedule(yaml).state_at(now, None),
            ScheduleState::Open { until: None },
            "{yaml}"
        );
    }
    // Windows of 24 hours leave an hour on the day of 25 hours.
    assert_stretches(
        "{windows: [{from: 00:00, for: 1d}], zone: Europe/Berlin}",
        "2026-06-05T00:00:00Z",
        &[
            ("2026-06-05T00:00:00Z", "2026-10-25T22:00:00Z"),
            ("2026-10-25T23:00:00Z", "2027-10-31T22:00:00Z"),
        ],
    );
}

#[test]
fn windows_follow_clocks_when_summer_time_begins() {
    for (zone, from, window, expected) in [
        // Clocks go from 02:00+01 to 03:00+02.
        (
            "Europe/Berlin",
            "2026-03-27T12:00:00Z",
            "{from: 22:00, for: 8h}",
            [
                ("2026-03-27T21:00:00Z", "2026-03-28T05:00:00Z"),
                ("2026-03-28T21:00:00Z", "2026-03-29T05:00:00Z"), // until 07:00
                ("2026-03-29T20:00:00Z", "2026-03-30T04:00:00Z"),
            ],
        ),
        // 02:30 is left out and becomes 03:30.
        (
            "Europe/Berlin",
            "2026-03-28T00:00:00Z",
            "{from: 02:30, for: 1h}",
            [
                ("2026-03-28T01:30:00Z", "2026-03-28T02:30:00Z"),
                ("2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"),
                ("2026-03-30T00:30:00Z", "2026-03-30T01:30:00Z"),
            ],
        ),
        // Clocks go from 02:00-05 to 03:00-04.
        (
            "America/New_York",
            "2026-03-07T00:00:00Z",
            "{from: 02:00, for: 90m}",
            [
                ("2026-03-07T07:00:00Z", "2026-03-07T08:30:00Z"),
                ("2026-03-08T07:00:00Z", "2026-03-08T08:30:00Z"), // 03:00 to 04:30
                ("2026-03-09T06:00:00Z", "2026-03-09T07:30:00Z"),
            ],
        ),
        // Clocks go from 02:00+10:30 to 02:30+11.
        (
            "Australia/Lord_Howe",
            "2026-10-02T15:00:00Z",
            "{from: 02:15, for: 1h}",
            [
                ("2026-10-02T15:45:00Z", "2026-10-02T16:45:00Z"),
                ("2026-10-03T15:45:00Z", "2026-10-03T16:45:00Z"), // 02:45 to 03:45
                ("2026-10-04T15:15:00Z", "2026-10-04T16:15:00Z"),
            ],
        ),
    ] {
        let yaml = format!("{{windows: [{window}], zone: {zone}}}");
        assert_stretches(&yaml, from, &expected);
    }
}

#[test]
fn windows_follow_clocks_when_summer_time_ends() {
    for (zone, from, window, expected) in [
        // Clocks go from 03:00+02 to 02:00+01.
        (
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            "{from: 22:00, for: 8h}",
            [
                ("2026-10-24T20:00:00Z", "2026-10-25T04:00:00Z"), // until 05:00
                ("2026-10-25T21:00:00Z", "2026-10-26T05:00:00Z"),
            ],
        ),
        // 02:30 occurs twice; the first time counts.
        (
            "Europe/Berlin",
            "2026-10-25T00:00:00Z",
            "{from: 02:30, for: 45m}",
            [
                ("2026-10-25T00:30:00Z", "2026-10-25T01:15:00Z"),
                ("2026-10-26T01:30:00Z", "2026-10-26T02:15:00Z"),
            ],
        ),
        // Clocks go from 02:00-04 to 01:00-05.
        (
            "America/New_York",
            "2026-11-01T00:00:00Z",
            "{from: 01:30, for: 1h}",
            [
                ("2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"),
                ("2026-11-02T06:30:00Z", "2026-11-02T07:30:00Z"),
            ],
        ),
        // Clocks go from 02:00+11 to 01:30+10:30.
        (
            "Australia/Lord_Howe",
            "2026-04-04T12:00:00Z",
            "{from: 01:45, for: 1h}",
            [
                ("2026-04-04T14:45:00Z", "2026-04-04T15:45:00Z"),
                ("2026-04-05T15:15:00Z", "2026-04-05T16:15:00Z"),
            ],
        ),
    ] {
        let yaml = format!("{{windows: [{window}], zone: {zone}}}");
        assert_stretches(&yaml, from, &expected);
    }
}

/// In Nuuk the last Saturday of March ends at 23:00. Saturday's window of 23:30 therefore begins on
/// Sunday, after the first window of Sunday itself.
#[test]
fn window_start_moved_past_midnight_is_kept() {
    let yaml = |second: &str| {
        format!(
            "{{windows: [{{days: [sat], from: 23:30, for: 1h}}, {second}], zone: America/Nuuk}}"
        )
    };
    assert_stretches(
        &yaml("{days: [sun], from: 00:10, for: 30m}"),
        "2026-03-28T12:00:00Z",
        &[("2026-03-29T01:10:00Z", "2026-03-29T02:30:00Z")],
    );
    assert_stretches(
        &yaml("{days: [sun], from: 00:10, for: 10m}"),
        "2026-03-28T12:00:00Z",
        &[
            ("2026-03-29T01:10:00Z", "2026-03-29T01:20:00Z"),
            ("2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"),
        ],
    );
}

#[test]
fn window_is_found_after_any_number_of_midnights() {
    // The Sunday of 23 hours, and Samoa's missing 30 December.
    assert_stretches(
        "{windows: [{days: [sat], from: 23:30, for: 1d}], zone: Europe/Berlin}",
        "2026-03-29T22:15:00Z",
        &[("2026-03-29T22:15:00Z", "2026-03-29T22:30:00Z")],
    );
    assert_stretches(
        "{windows: [{days: [thu], from: 23:00, for: 4h}], zone: Pacific/Apia}",
        "2011-12-30T12:00:00Z",
        &[("2011-12-30T12:00:00Z", "2011-12-30T13:00:00Z")],
    );
    // In St John's clocks went from 00:01 on Sunday back to 23:01 on Saturday.
    assert_stretches(
        "{windows: [{days: [sun], from: 00:00, for: 2h}], zone: America/St_Johns}",
        "2010-11-07T02:45:00Z",
        &[("2010-11-07T02:45:00Z", "2010-11-07T04:30:00Z")],
    );
}

/// Samoa had no 30 December 2011.
#[test]
fn freeze_of_skipped_day_has_no_effect() {
    let apia = schedule("{zone: Pacific/Apia, freeze: [{from: 2011-12-30}, {from: 2012-01-01}]}");
    assert_eq!(
        apia.state_at(time("2011-12-29T12:00:00Z"), None),
        open("2011-12-31T10:00:00Z")
    );
}

#[test]
fn a_freeze_cuts_windows_at_local_midnight() {
    let yaml = "\
windows: [{from: 22:00, for: 4h}]
zone: Europe/Berlin
freeze: [{from: 2026-12-24, to: 2026-12-25, reason: Christmas}, {from: 2026-12-25, to: 2026-12-26}]
";
    assert_stretches(
        yaml,
        "2026-12-22T22:00:00Z",
        &[
            ("2026-12-22T22:00:00Z", "2026-12-23T01:00:00Z"),
            ("2026-12-23T21:00:00Z", "2026-12-23T23:00:00Z"),
            // A window from the last frozen evening goes on after the freeze.
            ("2026-12-26T23:00:00Z", "2026-12-27T01:00:00Z"),
        ],
    );
    let schedule = schedule(yaml);
    let end = "2026-12-26T23:00:00Z";
    for (now, why) in [
        ("2026-12-23T23:00:00Z", frozen("Christmas")),
        ("2026-12-25T12:00:00Z", frozen("Christmas")),
        ("2026-12-26T12:00:00Z", Closed::Frozen { reason: None }),
        ("2026-12-26T22:59:59.999Z", Closed::Frozen { reason: None }),
    ] {
        assert_eq!(
            schedule.state_at(time(now), None),
            closed(end, why),
            "{now}"
        );
    }
}

#[test]
fn freeze_covers_actual_length_of_day() {
    for (zone, day, from, hours, minutes) in [
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00:00Z", 23, 0),
        ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00:00Z", 25, 0),
        (
            "America/New_York",
            "2026-03-08",
            "2026-03-08T05:00:00Z",
            23,
            0,
        ),
        (
            "America/New_York",
            "2026-11-01",
            "2026-11-01T04:00:00Z",
            25,
            0,
        ),
        (
            "Australia/Lord_Howe",
            "2026-10-04",
            "2026-10-03T13:30:00Z",
            23,
            30,
        ),
        (
            "Australia/Lord_Howe",
            "2026-04-05",
            "2026-04-04T13:00:00Z",
            24,
            30,
        ),
        // In April, midnight is left out. In October, 23:00 occurs twice.
        ("Africa/Cairo", "2026-04-24", "2026-04-23T22:00:00Z", 23, 0),
        ("Africa/Cairo", "2026-10-29", "2026-10-28T21:00:00Z", 25, 0),
    ] {
        let schedule = schedule(&format!("{{zone: {zone}, freeze: [{{from: {day}}}]}}"));
        let from = time(from);
        let to = Timestamp(from.0 + hours * HOUR + minutes * MINUTE);
        assert_eq!(
            schedule.state_at(Timestamp(from.0 - 1), None),
            ScheduleState::Open { until: Some(from) },
            "{zone} {day}"
        );
        let closed = ScheduleState::Closed {
            until: Some(to),
            why: Closed::Frozen { reason: None },
        };
        assert_eq!(schedule.state_at(from, None), closed, "{zone} {day}");
        assert_eq!(
            schedule.state_at(Timestamp(to.0 - 1), None),
            closed,
            "{zone} {day}"
        );
        assert_eq!(
            schedule.state_at(to, None),
            ScheduleState::Open { until: None },
            "{zone} {day}"
        );
    }
}

#[test]
fn schedule_is_closed_before_start() {
    let start = "2026-06-05T23:30:00.500Z";
    for (rest, until) in [
        ("", start),
        ("windows: [{from: 22:00, for: 4h}]", start),
        ("windows: [{from: 22:00, for: 1h}]", "2026-06-06T22:00:00Z"),
        (
            "freeze: [{from: 2026-06-05, to: 2026-06-07}]",
            "2026-06-08T00:00:00Z",
        ),
    ] {
        let schedule = schedule(&format!("start_at: {start}\n{rest}\n"));
        for now in ["2020-06-05T00:00:00Z", "2026-06-05T23:30:00.499Z"] {
            assert_eq!(
                schedule.state_at(time(now), None),
                closed(until, Closed::NotStarted),
                "{now} {rest}"
            );
        }
    }
    let schedule = schedule(&format!("start_at: {start}"));
    assert_eq!(
        schedule.state_at(time(start), None),
        ScheduleState::Open { until: None }
    );
}

#[test]
fn opening_beyond_horizon_is_not_reported() {
    let yaml = |to: &str| {
        format!("{{windows: [{{from: 10:00, for: 1h}}], freeze: [{{from: 2026-01-01, to: {to}}}]}}")
    };
    let now = time("2026-01-01T12:00:00Z");
    assert_eq!(
        schedule(&yaml("2026-12-31")).state_at(now, None),
        closed("2027-01-01T10:00:00Z", Closed::Frozen { reason: None })
    );
    assert_eq!(
        schedule(&yaml("9999-12-31")).state_at(now, None),
        ScheduleState::Closed {
            until: None,
            why: Closed::Frozen { reason: None }
        }
    );
}

#[test]
fn schedule_must_open_within_400_days() {
    let with = |yaml: &str| -> Schedule { Document::parse("x", yaml).unwrap().read().unwrap() };
    let start = "start_at: 2027-01-01T00:00:00Z";
    // 400 days after the start is 2028-02-05.
    for (rest, problem) in [
        ("freeze: [{from: 2027-01-01, to: 2028-02-04}]", None),
        (
            "freeze: [{from: 2027-01-01, to: 2028-02-05, reason: sold}]",
            Some(
                "is frozen: sold at 2027-01-01T00:00:00Z, and does not open within 400 days; shorten its freezes",
            ),
        ),
        (
            "freeze: [{from: 2026-01-01, to: 2027-06-01}, {from: 2027-06-02, to: 2099-01-01}]",
            Some("is frozen at"),
        ),
        // Open before the freeze.
        ("freeze: [{from: 2027-01-02, to: 2099-01-01}]", None),
        (
            "windows: [{days: [sun], from: \"10:00\", for: 1h}], freeze: [{from: 2027-01-02, to: 2099-01-01}]",
            Some("is outside its windows at"),
        ),
    ] {
        let found = with(&format!("{{{start}, {rest}}}")).problems();
        assert_eq!(found.is_empty(), problem.is_none(), "{rest}: {found:?}");
        for (field, what) in found {
            assert_eq!(field, "freeze");
            assert!(what.starts_with(problem.unwrap()), "{what}");
        }
    }
    // Without a start, the check needs a given time.
    let frozen = with("freeze: [{from: 2027-01-01, to: 2030-01-01}]");
    assert_eq!(frozen.problems(), []);
    assert_eq!(frozen.never_opens(time("2026-12-31T12:00:00Z")), None);
    assert!(frozen.never_opens(time("2027-01-01T00:00:00Z")).is_some());
    assert_eq!(frozen.never_opens(time("2029-01-01T00:00:00Z")), None);
    for bound in ["2020-01-01T00:00:00Z", "2099-12-31T23:59:59.999Z"] {
        let night = format!("{{start_at: {bound}, windows: [{{from: \"22:00\", for: 1h}}]}}");
        assert_eq!(with(&night).problems(), []);
    }
}

#[test]
fn device_zone_overrides_default_zone() {
    let schedule =
        schedule("{windows: [{from: 22:00, for: 2h}], zone: Europe/Berlin, zone_tag: zone}");
    let now = time("2026-06-05T20:30:00Z");
    let berlin = open("2026-06-05T22:00:00Z");
    for (zone, expected) in [
        (None, berlin.clone()),
        (Some("Europe/Berlin"), berlin.clone()),
        (Some(""), berlin.clone()),
        (Some("Mars/Olympus_Mons"), berlin.clone()),
        (Some("Etc/Unknown"), berlin),
        (
            Some("America/New_York"),
            closed("2026-06-06T02:00:00Z", Closed::OutsideWindow),
        ),
        (
            Some("UTC"),
            closed("2026-06-05T22:00:00Z", Closed::OutsideWindow),
        ),
    ] {
        assert_eq!(schedule.state_at(now, zone), expected, "{zone:?}");
    }
}

/// Zones, each with a time near a change of the zone's clocks.
const CHANGES: [(&str, &str); 14] = [
    ("Europe/Berlin", "2026-03-29T01:00:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00:00Z"),
    ("America/New_York", "2026-03-08T07:00:00Z"),
    ("America/New_York", "2026-11-01T06:00:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
    ("America/Nuuk", "2026-03-29T01:00:00Z"),
    ("America/Nuuk", "2026-10-25T01:00:00Z"),
    ("Africa/Cairo", "2026-04-23T22:00:00Z"),
    ("Africa/Cairo", "2026-10-29T21:00:00Z"),
    ("America/Santiago", "2026-09-06T04:00:00Z"),
    ("America/Santiago", "2026-04-05T03:00:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
    ("UTC", "2028-02-29T00:00:00Z"),
];

const DAYS: [Day; 7] = [
    Day::Mon,
    Day::Tue,
    Day::Wed,
    Day::Thu,
    Day::Fri,
    Day::Sat,
    Day::Sun,
];

fn some_window() -> impl Strategy<Value = Window> {
    let hour = prop_oneof![0..4u32, 22..24u32, 0..24u32];
    let minute = prop_oneof![Just(0u32), Just(30), 0..60u32];
    let minutes = prop_oneof![1..120u64, 120..1500u64, 1..=7 * 24 * 60u64];
    let days = proptest::sample::subsequence(DAYS.to_vec(), 0..=7);
    (days, hour, minute, minutes).prop_map(|(days, hour, minute, minutes)| Window {
        days,
        from: format!("{hour:02}:{minute:02}").parse().unwrap(),
        length: HumanDuration(Duration::from_secs(minutes * 60)),
    })
}

/// A schedule, and a time near a change of the zone's clocks.
fn some_schedule() -> impl Strategy<Value = (Schedule, Timestamp)> {
    let windows = prop::collection::vec(some_window(), 0..5);
    let freezes = prop::collection::vec((-3..4i64, 0..3i64), 0..3);
    let start = prop::option::weighted(0.3, -2 * 24 * 60..2 * 24 * 60i64);
    let change = proptest::sample::select(CHANGES.to_vec());
    (windows, freezes, start, change, 0..48 * HOUR).prop_map(
        |(windows, freezes, start, (zone, change), before)| {
            let change = time(change);
            let shifted = |minutes: i64| Timestamp(change.0.strict_add_signed(minutes * 60_000));
            let date = |days: i64| -> CivilDate {
                let time = shifted(days * 24 * 60).to_string();
                time[..10].parse().unwrap()
            };
            let freeze = freezes.into_iter().map(|(from, days)| Freeze {
                from: date(from),
                to: (days > 0).then(|| date(from + days)),
                reason: None,
            });
            let schedule = Schedule {
                start_at: start.map(shifted),
                windows,
                zone: Some(zone.parse().unwrap()),
                zone_tag: None,
                unknown_zone: UnknownZone::Default,
                freeze: freeze.collect(),
            };
            (schedule, Timestamp(change.0 - before))
        },
    )
}

/// The definition for a single time: tries every start of every window of the last days.
fn is_open(schedule: &Schedule, now: Timestamp) -> bool {
    let zone = schedule.zone.as_ref().unwrap().zone();
    let now = jiff::Timestamp::from_millisecond(now.0.cast_signed()).unwrap();
    let today = zone.to_datetime(now).date();
    let started = schedule
        .start_at
        .is_none_or(|start| start.0.cast_signed() <= now.as_millisecond());
    let frozen = schedule
        .freeze
        .iter()
        .any(|freeze| freeze.from.date() <= today && today <= freeze.last().date());
    let inside = |window: &Window| {
        let mut day = today;
        (0..10).any(|_| {
            let start = window
                .from
                .on(day)
                .to_zoned(zone.clone())
                .unwrap()
                .timestamp();
            let starts = window.starts_on(day);
            day = day.yesterday().unwrap();
            starts && start <= now && now.duration_since(start).unsigned_abs() < window.length.0
        })
    };
    let windows = &schedule.windows;
    started && !frozen && (windows.is_empty() || windows.iter().any(inside))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn schedule_states_match_definition((schedule, from) in some_schedule()) {
        let end = Timestamp(from.0 + 72 * HOUR);
        let mut now = from;
        while now < end {
            let (open, until) = match schedule.state_at(now, None) {
                ScheduleState::Open { until } => (true, until),
                ScheduleState::Closed { until, .. } => (false, until),
            };
            let is_open_at = |time| matches!(schedule.state_at(time, None), ScheduleState::Open { .. });
            if let Some(until) = until {
                prop_assert!(until > now, "{now} until {until}");
                prop_assert_eq!(is_open_at(until), !open, "at {}", until);
                let before = Timestamp(until.0 - 1);
                prop_assert_eq!(is_open_at(before), open, "before {}", until);
                prop_assert_eq!(is_open(&schedule, until), !open, "at {}", until);
                prop_assert_eq!(is_open(&schedule, before), open, "before {}", until);
            }
            let until = until.unwrap_or(end).min(end);
            while now < until {
                prop_assert_eq!(is_open(&schedule, now), open, "at {}", now);
                now = Timestamp(now.0 + MINUTE);
            }
            now = until;
        }
    }
}
