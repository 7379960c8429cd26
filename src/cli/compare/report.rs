//! The figures of `medfuse compare` as a table, CSV and JSON.

use serde_json::{Value, json};

use crate::cli::eval::{self, Done, Failed, aligned, csv_cell, summary};
use crate::metrics::NAMES;

/// The rows: their labels and their figures of the same pairs.
pub(super) type Figures = Vec<(String, Done)>;

/// The means in aligned columns, the best of each marked: the least MSE, the most of the others, never NaN.
pub(super) fn table(rows: &Figures) -> String {
    let means: Vec<_> = rows.iter().filter_map(|(_, pairs)| Some(summary(pairs)?.0.values())).collect();
    let merit = |mean: &[f64; 12], metric: usize| if NAMES[metric] == "MSE" { -mean[metric] } else { mean[metric] };
    let best = |metric: usize| means.iter().map(|mean| merit(mean, metric)).fold(f64::NAN, f64::max);
    // Figures end in a mark or a space, so that their digits stand below each other.
    let mut cells =
        vec![["name".to_owned()].into_iter().chain(NAMES.map(|name| format!("{name} "))).collect::<Vec<_>>()];
    for ((label, _), mean) in rows.iter().zip(&means) {
        let mark = |metric| if merit(mean, metric) == best(metric) { '*' } else { ' ' };
        let figures = (0..NAMES.len()).map(|metric| format!("{:.4}{}", mean[metric], mark(metric)));
        cells.push([label.clone()].into_iter().chain(figures).collect());
    }
    format!("{}means over {} pairs; * best of the column (MSE: the least)", aligned(&cells), rows[0].1.len())
}

/// A header and a line for each row and pair, at full precision.
pub(super) fn csv(rows: &Figures) -> String {
    let mut text = format!("row,name,{}\n", NAMES.join(","));
    for (label, pairs) in rows {
        eval::csv(pairs).lines().skip(1).for_each(|line| text += &format!("{},{line}\n", csv_cell(label)));
    }
    text
}

/// For each row its label and the report of `medfuse eval`.
pub(super) fn json(rows: &Figures, left_out: &Failed) -> String {
    let reports = rows.iter().map(|(label, pairs)| {
        let mut report = eval::report_json(pairs, left_out);
        report["row"] = json!(label);
        report
    });
    format!("{:#}", Value::from_iter(reports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_best_of_a_column_is_the_least_mse_and_the_most_of_the_others() {
        let row = |v: f64| Metrics::from_values([v; 12]);
        let mut undefined = row(0.5);
        undefined.cc = f64::NAN;
        let pairs = |first, second| vec![("1".to_owned(), first), ("2".to_owned(), second)];
        let rows = vec![
            ("a".to_owned(), pairs(row(1.0), row(4.0))),
            ("long,".to_owned(), pairs(row(9.0), row(3.0))),
            ("c".to_owned(), pairs(undefined, undefined)),
        ];
        let table = super::table(&rows);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a"].into_iter().chain(["2.5000"; 12]).collect::<Vec<_>>());
        assert_eq!(lines[2], ["long,"].into_iter().chain(["6.0000*"; 11]).chain(["6.0000"]).collect::<Vec<_>>());
        assert_eq!((lines[3][11], lines[3][12]), ("NaN", "0.5000*"));
        assert!(table.ends_with("means over 2 pairs; * best of the column (MSE: the least)"), "{table}");
        let csv = super::csv(&rows);
        assert_eq!(csv.lines().nth(4), Some(&*format!("\"long,\",2{}", ",3".repeat(12))), "{csv}");
        assert_eq!(csv.lines().count(), 1 + 3 * 2);
        let json: Value = serde_json::from_str(&super::json(&rows, &vec![("3".into(), "missing".into())])).unwrap();
        assert_eq!((&json[1]["row"], &json[1]["pairs"][1]["EN"]), (&json!("long,"), &json!(3.0)));
        assert_eq!((&json[1]["mean"]["EN"], &json[0]["failed"][0]["name"]), (&json!(6.0), &json!("3")));
    }
}
