//! What a plan has left out, or taken once only, for people.

use twincast_core::plan::PlanSummary;

use crate::output::{one_line, thousands};

/// A line for devices that were named again, and some for rows that are not understood.
pub(crate) fn lines(plan: &PlanSummary) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.repeated > 0 {
        lines.push(format!(
            "{:>9}  named again, by the list or a hub; each device counts once",
            thousands(plan.repeated)
        ));
    }
    let odd = &plan.not_understood;
    if !odd.is_empty() {
        lines.push(format!(
            "{:>9}  in rows of the hubs that are not understood:",
            thousands(odd.rows)
        ));
        let examples = odd.examples.iter();
        lines.extend(examples.map(|it| format!("{:>9}  {}", "", one_line(&it.to_string()))));
        if odd.unnamed() > 0 {
            lines.push(format!("{:>9}  and {} more", "", thousands(odd.unnamed())));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_is_named() {
        let plan = |repeated: u64, rows: u64| -> PlanSummary {
            let example = json!({"hub": "eu", "found": "x y", "reason": "its id is no good"});
            let plan = json!({
                "devices": 5, "batches": 1, "digest": "", "checksum": {"batches": 1, "devices": 5, "sum": 0}, "hubs": [], "excluded": [], "repeated": repeated,
                "not_understood": {"rows": rows, "examples": if rows > 0 { json!([example]) } else { json!([]) }},
            });
            serde_json::from_value(plan).expect("a plan")
        };
        assert!(lines(&plan(0, 0)).is_empty());
        assert_eq!(
            lines(&plan(1_200, 3)),
            [
                "    1,200  named again, by the list or a hub; each device counts once",
                "        3  in rows of the hubs that are not understood:",
                "           \"x y\" of hub eu: its id is no good",
                "           and 2 more",
            ]
        );
    }
}
