//! Samples as OpenMetrics text (version 1.0.0).

use std::fmt::Write as _;

use super::describe::{Metric, MetricKind, MetricUnit, METRICS};
use crate::measure::{Counts, Sample, Value};

/// The text of all samples whose metrics are described, in the order of [`METRICS`].
pub(crate) fn open_metrics(samples: &[Sample]) -> String {
    // A line has some 80 bytes, and a histogram some 20 lines.
    let mut text = String::with_capacity(64 << 10);
    for metric in METRICS {
        let mut of = samples.iter().filter(|s| s.name == metric.name).peekable();
        if of.peek().is_none() {
            continue;
        }
        let family = metric.family();
        head(&mut text, metric, &family);
        for sample in of {
            match &sample.value {
                Value::Number(number) => {
                    let name = metric.exported_name();
                    line(&mut text, &name, sample, None, *number);
                }
                Value::Histogram(counts) => histogram(&mut text, &family, sample, counts),
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

fn head(text: &mut String, metric: &Metric, family: &str) {
    let kind = match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    };
    let unit = match metric.unit {
        MetricUnit::Bytes => "bytes",
        MetricUnit::Seconds => "seconds",
        MetricUnit::Frost => "frost",
        MetricUnit::Ratio => "ratio",
        MetricUnit::Count => "",
    };
    let _ = writeln!(text, "# TYPE {family} {kind}");
    // The unit must be the end of the name.
    let ends = |unit: &str| family.strip_suffix(unit).is_some_and(|f| f.ends_with('_'));
    if !unit.is_empty() && ends(unit) {
        let _ = writeln!(text, "# UNIT {family} {unit}");
    }
    let _ = writeln!(text, "# HELP {family} {}", escaped(metric.help));
}

fn histogram(text: &mut String, family: &str, sample: &Sample, counts: &Counts) {
    let mut sum = 0;
    let bucket = format!("{family}_bucket");
    for (at, count) in counts.counts.iter().enumerate() {
        sum += count;
        let end = match counts.bounds.get(at) {
            Some(end) => format!("{end:?}"),
            None => "+Inf".to_owned(),
        };
        line(text, &bucket, sample, Some(&end), sum as f64);
    }
    line(text, &format!("{family}_sum"), sample, None, counts.sum);
    line(text, &format!("{family}_count"), sample, None, sum as f64);
}

fn line(text: &mut String, name: &str, sample: &Sample, le: Option<&str>, value: f64) {
    text.push_str(name);
    let mut labels = sample
        .labels
        .iter()
        .map(|(label, value)| (*label, value.as_str()));
    let mut separator = '{';
    for (label, value) in labels.by_ref().chain(le.map(|le| ("le", le))) {
        let _ = write!(text, "{separator}{label}=\"{}\"", escaped(value));
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    let _ = match value {
        v if v.is_nan() => writeln!(text, " NaN"),
        v if v == f64::INFINITY => writeln!(text, " +Inf"),
        v if v == f64::NEG_INFINITY => writeln!(text, " -Inf"),
        v => writeln!(text, " {v}"),
    };
}

fn escaped(text: &str) -> String {
    if !text.contains(['\\', '"', '\n']) {
        return text.to_owned();
    }
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Histogram, RATIOS};

    #[test]
    fn a_text_has_heads_lines_and_an_end() {
        let fill = Histogram::new(&RATIOS);
        fill.observe(500_000);
        fill.observe(2_000_000);
        let samples = [
            Sample::number("gets", 3.0),
            Sample::number("endpoint_healthy", 1.0)
                .with("role", "publisher")
                .with("host", "a\"b\\c\nd"),
            Sample::number("of_a_foreign_store", 1.0),
            Sample::histogram("upload_fill_ratio", &fill),
        ];
        let text = open_metrics(&samples);
        for line in [
            "# TYPE walrusds_gets counter\n# HELP walrusds_gets blocks read\nwalrusds_gets_total 3\n",
            "walrusds_endpoint_healthy{role=\"publisher\",host=\"a\\\"b\\\\c\\nd\"} 1\n",
            "# UNIT walrusds_upload_fill_ratio ratio\n",
            "walrusds_upload_fill_ratio_bucket{le=\"0.25\"} 0\n",
            "walrusds_upload_fill_ratio_bucket{le=\"0.5\"} 1\n",
            "walrusds_upload_fill_ratio_bucket{le=\"+Inf\"} 2\n",
            "walrusds_upload_fill_ratio_sum 2.5\nwalrusds_upload_fill_ratio_count 2\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("foreign"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_are_those_of_prometheus() {
        for metric in METRICS {
            let name = metric.exported_name();
            let word = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            assert!(name.chars().all(word), "{name}");
            // Kubo names its own measurements of the datastore so.
            assert!(!name.starts_with("walrusds_datastore_"), "{name}");
            for ending in ["_count", "_sum", "_bucket", "_info", "_created"] {
                assert!(!metric.name.ends_with(ending), "{name}");
            }
            assert!(!metric.name.ends_with("_total"), "{name}");
            assert!(!metric.labels.contains(&"table") && !metric.labels.contains(&"le"));
        }
    }
}
