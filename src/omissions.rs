//! Devices left out of a plan, and repeated devices, as text.

use twincast_core::plan::PlanSummary;

use crate::output::{escape_line, thousands};

/// Returns a line for repeated devices, and lines for malformed rows.
pub(crate) fn lines(plan: &PlanSummary) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.repeated > 0 {
        lines.push(format!(
            "{:>9}  duplicates in the list or in the hubs' answers; each device counts once",
            thousands(plan.repeated)
        ));
    }
    let malformed = &plan.malformed_rows;
    if !malformed.is_empty() {
        lines.push(format!(
            "{:>9}  in malformed rows of the hubs' answers:",
            thousands(malformed.rows)
        ));
        let examples = malformed.examples.iter();
        lines.extend(examples.map(|it| format!("{:>9}  {}", "", escape_line(&it.to_string()))));
        if malformed.without_example() > 0 {
            lines.push(format!(
                "{:>9}  and {} more",
                "",
                thousands(malformed.without_example())
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_and_malformed_rows_are_reported() {
        let plan = |repeated: u64, rows: u64| -> PlanSummary {
            let example = json!({"hub": "eu", "found": "x y", "reason": "its id is no good"});
            let plan = json!({
                "devices": 5, "batches": 1, "digest": "", "checksum": {"batches": 1, "devices": 5, "sum": 0}, "hubs": [], "excluded": [], "repeated": repeated,
                "malformed_rows": {"rows": rows, "examples": if rows > 0 { json!([example]) } else { json!([]) }},
            });
            serde_json::from_value(plan).expect("a plan")
        };
        assert!(lines(&plan(0, 0)).is_empty());
        assert_eq!(
            lines(&plan(1_200, 3)),
            [
                "    1,200  duplicates in the list or in the hubs' answers; each device counts \
                 once",
                "        3  in malformed rows of the hubs' answers:",
                "           \"x y\" of hub eu: its id is no good",
                "           and 2 more",
            ]
        );
    }
}
