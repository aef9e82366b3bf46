//! A figure as the numbers grow, and the exponent by which it grows.

use crate::NUMBERS;

/// How far an exponent may be off: from one second to the next this machine is a third faster or slower, and a table
/// may just have doubled.
const TOLERANCE: f64 = 0.15;

/// How a figure may grow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Ten times as much for ten times as many.
    Linear,
    /// As much as before.
    Same,
}

/// What was measured at each of [`NUMBERS`].
pub struct Figure {
    pub what: String,
    pub unit: &'static str,
    /// The plot that shows it.
    pub plot: &'static str,
    goal: Goal,
    pub values: Vec<f64>,
}

impl Figure {
    pub fn new(
        what: impl Into<String>,
        unit: &'static str,
        plot: &'static str,
        goal: Goal,
        values: Vec<f64>,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            plot,
            goal,
            values,
        }
    }

    /// By which power of the number it grows from one decade to the next.
    fn exponents(&self) -> Vec<f64> {
        let pairs = self.values.windows(2);
        pairs.map(|pair| (pair[1] / pair[0]).log10()).collect()
    }

    /// One line, and whether the goal is reached: the last decade decides, where what grows has outgrown the rest.
    pub fn print(&self) {
        let values: String = self
            .values
            .iter()
            .map(|v| format!(" {:>11}", short(*v)))
            .collect();
        let exponents = self.exponents();
        let shown: String = exponents.iter().map(|e| format!(" {e:>5.2}")).collect();
        let most = match self.goal {
            Goal::Linear => 1.0,
            Goal::Same => 0.0,
        };
        let last = exponents.last().copied().unwrap_or_default();
        let word = if last <= most + TOLERANCE {
            "reached"
        } else {
            "MISSED"
        };
        println!(
            "{:46} {:>12}{values}  {shown}   at most {most}: {word}",
            self.what, self.unit
        );
    }
}

/// The words above the columns.
pub fn head() {
    let numbers: String = NUMBERS.iter().map(|n| format!(" {n:>11}")).collect();
    println!("{:46} {:>12}{numbers}   exponent by decade", "", "");
}

/// Four digits that count.
fn short(value: f64) -> String {
    let digits = (3 - value.abs().max(0.001).log10().floor() as i32).clamp(0, 4);
    format!("{value:.*}", digits as usize)
}
