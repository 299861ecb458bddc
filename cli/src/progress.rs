//! The progress of long work, on standard error: a bar with rate and ETA on a terminal, a plain
//! line now and then otherwise.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::output::{bytes, count};

/// The pause between two plain lines.
const LINES: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    /// Things of this name ("blocks").
    Things(&'static str),
}

impl Unit {
    fn shown(self, n: u64) -> String {
        match self {
            Unit::Bytes => bytes(n),
            Unit::Things(name) => format!("{} {name}", count(n)),
        }
    }
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

/// A display of work that goes on.
pub struct Progress {
    what: String,
    unit: Unit,
    display: Display,
    began: Instant,
    /// What was done before this run (a run that was resumed).
    before: u64,
    done: u64,
    total: Option<u64>,
}

impl Progress {
    pub(crate) fn new(what: &str, unit: Unit, quiet: bool, terminal: bool) -> Progress {
        let display = match (quiet, terminal) {
            (true, _) => Display::Nothing,
            (false, true) => Display::Bar(bar(what, unit, None)),
            (false, false) => Display::Lines {
                last: Instant::now(),
            },
        };
        Progress {
            what: what.to_owned(),
            unit,
            display,
            began: Instant::now(),
            before: 0,
            done: 0,
            total: None,
        }
    }

    /// Tells how much there is to do.
    pub fn total(&mut self, total: u64) {
        self.total = Some(total);
        if let Display::Bar(bar) = &self.display {
            bar.set_style(style(self.unit, true));
            bar.set_length(total);
        }
    }

    /// Tells that so much was done before this run began.
    pub fn resumed(&mut self, before: u64) {
        self.before = before;
        self.at(before);
        if let Display::Bar(bar) = &self.display {
            bar.reset_eta();
        }
    }

    /// Tells how much is done.
    pub fn at(&mut self, done: u64) {
        self.done = done;
        let line = self.line();
        match &mut self.display {
            Display::Bar(bar) => bar.set_position(done),
            Display::Lines { last } if last.elapsed() >= LINES => {
                *last = Instant::now();
                let _ = writeln!(std::io::stderr(), "{line}");
            }
            _ => {}
        }
    }

    /// A line of text above the bar, or among the lines.
    pub fn say(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.println(text),
            Display::Lines { .. } => drop(writeln!(std::io::stderr(), "{text}")),
            Display::Nothing => {}
        }
    }

    fn line(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = self.done.saturating_sub(self.before) as f64 / seconds;
        let done = self.unit.shown(self.done);
        let rate_shown = self.unit.shown(rate as u64);
        match self.total {
            Some(total) => {
                let left = total.saturating_sub(self.done) as f64;
                let eta = match rate > 0.0 {
                    true => format!(", {} left", span(left / rate)),
                    false => String::new(),
                };
                let of = self.unit.shown(total);
                format!("{}: {done} of {of}, {rate_shown}/s{eta}", self.what)
            }
            None => format!("{}: {done}, {rate_shown}/s", self.what),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// A time in whole seconds, minutes and hours.
fn span(seconds: f64) -> String {
    // A rate near zero gives any number.
    let whole = Duration::from_secs(seconds.clamp(0.0, 1e9) as u64);
    humantime::format_duration(whole).to_string()
}

fn bar(what: &str, unit: Unit, total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.set_style(style(unit, total.is_some()));
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style(unit: Unit, total: bool) -> ProgressStyle {
    // Every line has room in 80 columns: the display cuts off what has not.
    let template = match (unit, total) {
        (Unit::Bytes, true) => {
            "{prefix} [{bar:14}] {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {left}"
        }
        (Unit::Bytes, false) => "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        (Unit::Things(_), true) => "{prefix} [{bar:14}] {percent:>3}% {human_pos}/{human_len} {per_sec} {left}",
        (Unit::Things(_), false) => "{prefix} {spinner} {human_pos} {per_sec}",
    };
    // The templates are constant, so they parse.
    let style = ProgressStyle::with_template(template);
    style.map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.with_key("left", left).progress_chars("=> "),
    )
}

/// The time that is left, once there is a rate to tell it by.
fn left(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    if state.pos() > 0 && !state.eta().is_zero() {
        let _ = write!(out, "{:#} left", HumanDuration(state.eta()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_the_work_is() {
        let mut progress = Progress::new("checking", Unit::Things("blocks"), false, false);
        progress.total(1000);
        progress.resumed(400);
        progress.began = Instant::now() - Duration::from_secs(10);
        progress.at(500);
        let line = progress.line();
        assert!(
            line.starts_with("checking: 500 blocks of 1,000 blocks, "),
            "{line}"
        );
        assert!(
            line.contains("blocks/s, ") && line.ends_with(" left"),
            "{line}"
        );
    }

    #[test]
    fn the_styles_parse() {
        for unit in [Unit::Bytes, Unit::Things("blocks")] {
            for total in [true, false] {
                drop(style(unit, total));
            }
        }
    }
}
