//! Wall times in relation to flatfs, as an SVG picture.

use std::fmt::Write as _;

use crate::kind::Kind;
use crate::results::Results;
use crate::workload::WORKLOADS;

/// Pixels.
const WIDTH: f64 = 920.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 96.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;
/// Bars longer than this are cut off; their figure says how long they are.
const MOST: f64 = 2.0;

/// The plotted datastores and their colours (after Okabe and Ito: distinguishable for the
/// colour-blind).
const SHOWN: [(Kind, &str); 6] = [
    (Kind::Badger, "#999999"),
    (Kind::Pebble, "#56b4e9"),
    (Kind::Journal, "#009e73"),
    (Kind::JournalPostgres, "#0072b2"),
    (Kind::JournalSlow, "#e69f00"),
    (Kind::Through, "#cc79a7"),
];

/// The bars of a workload that ran more than once.
struct Group {
    title: &'static str,
    bars: Vec<Bar>,
}

struct Bar {
    kind: Kind,
    colour: &'static str,
    ratio: f64,
}

fn groups(results: &Results) -> Vec<Group> {
    let mut groups = Vec::new();
    for workload in WORKLOADS {
        let mut bars = Vec::new();
        for (kind, colour) in SHOWN {
            if let Some(ratio) = results.ratio(workload.name, kind, Kind::Flatfs) {
                bars.push(Bar {
                    kind,
                    colour,
                    ratio,
                });
            }
        }
        if !bars.is_empty() && !workload.once {
            groups.push(Group {
                title: workload.title,
                bars,
            });
        }
    }
    groups
}

/// The picture; `None` if nothing was measured beside flatfs.
pub fn svg(results: &Results, caption: &str) -> Option<String> {
    let groups = groups(results);
    if groups.is_empty() {
        return None;
    }
    let bars: usize = groups.iter().map(|group| group.bars.len()).sum();
    let bottom = TOP + bars as f64 * BAR + groups.len() as f64 * GAP;
    let height = bottom + 34.0;
    let scale = (WIDTH - LEFT - RIGHT) / MOST;
    let x = |ratio: f64| LEFT + ratio * scale;

    let mut out = String::new();
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" role="img" aria-label="Wall time in relation to flatfs">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="16" y="26" font-size="17" font-weight="bold">Wall time in relation to flatfs (shorter is faster)</text>
<text x="16" y="46" fill="#555555">{}</text>"##,
        escape(caption)
    );
    let mut at = 16.0;
    for (kind, colour) in SHOWN {
        if groups
            .iter()
            .flat_map(|group| &group.bars)
            .any(|bar| bar.kind == kind)
        {
            let _ = writeln!(
                out,
                r#"<rect x="{at}" y="60" width="11" height="11" fill="{colour}"/><text x="{}" y="70">{}</text>"#,
                at + 16.0,
                kind.label()
            );
            // About the width of the text.
            at += 32.0 + kind.label().len() as f64 * 6.3;
        }
    }
    for step in 0..=(MOST * 4.0) as u32 {
        let ratio = f64::from(step) / 4.0;
        let (colour, width) = if step == 4 {
            ("#222222", 1.6)
        } else {
            ("#dddddd", 1.0)
        };
        let _ = writeln!(
            out,
            r#"<line x1="{0:.1}" x2="{0:.1}" y1="{TOP}" y2="{bottom}" stroke="{colour}" stroke-width="{width}"/>"#,
            x(ratio)
        );
        if step % 2 == 0 {
            let name = if step == 4 {
                "flatfs".to_owned()
            } else {
                format!("{ratio} ×")
            };
            let _ = writeln!(
                out,
                r##"<text x="{:.1}" y="{}" text-anchor="middle" fill="#555555">{name}</text>"##,
                x(ratio),
                bottom + 18.0
            );
        }
    }
    let mut y = TOP;
    for Group { title, bars } in &groups {
        y += GAP / 2.0;
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(
            out,
            r#"<text x="{}" y="{middle:.1}" text-anchor="end">{}</text>"#,
            LEFT - 10.0,
            escape(title)
        );
        for Bar {
            kind,
            colour,
            ratio,
        } in bars
        {
            let end = x(ratio.min(MOST));
            let more = if *ratio > MOST { " ▸" } else { "" };
            let _ = writeln!(
                out,
                r##"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="{}" fill="{colour}"><title>{}: {ratio:.2}</title></rect><text x="{:.1}" y="{:.1}" font-size="10" fill="#333333">{ratio:.2}{more}</text>"##,
                y + 1.0,
                end - LEFT,
                BAR - 2.0,
                kind.label(),
                end + 4.0,
                y + BAR - 3.0
            );
            y += BAR;
        }
        y += GAP / 2.0;
    }
    out.push_str("</svg>\n");
    Some(out)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
