//! Counts instructions: this program runs itself under valgrind with few and with many repetitions of one operation.
//! The difference has nothing in it but the operation.

use std::process::{Command, Stdio};

/// The word by which this program knows that it is the one that is counted.
const REPEAT: &str = "repeat";

/// Makes an operation ready to be repeated at most so many times.
type Ready = Box<dyn Fn(usize) -> Operation>;
/// One repetition. What was prepared may be used up by it.
pub type Operation = Box<dyn FnMut()>;

/// An operation to be counted.
pub struct Case {
    /// What it is called.
    pub name: String,
    /// The most instructions that it is to take.
    pub goal: Option<f64>,
    times: usize,
    units: usize,
    ready: Ready,
}

impl Case {
    /// An operation that is repeated so many times.
    pub fn new(
        name: impl Into<String>,
        times: usize,
        ready: impl Fn(usize) -> Operation + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            goal: None,
            times,
            units: 1,
            ready: Box::new(ready),
        }
    }

    /// It is to take no more instructions than this.
    pub fn at_most(self, goal: f64) -> Self {
        let goal = Some(goal);
        Self { goal, ..self }
    }

    /// One repetition does so many of what is counted.
    pub fn of(self, units: usize) -> Self {
        Self { units, ..self }
    }
}

/// Is this program being counted? Then it has done what was asked.
pub fn repeated(args: &[String], cases: &[Case]) -> bool {
    let [word, name, times] = args else {
        return false;
    };
    if word != REPEAT {
        return false;
    }
    let case = cases.iter().find(|c| c.name == *name).unwrap();
    // Made ready for the most in both runs, so that the difference has nothing of it.
    let mut operation = (case.ready)(case.times);
    for _ in 0..times.parse().unwrap() {
        operation();
    }
    // Nor of the clearing up.
    std::process::exit(0);
}

/// Instructions that the operation takes, each.
pub fn instructions(case: &Case) -> f64 {
    let few = case.times / 4;
    let more = total(case, case.times) - total(case, few);
    more as f64 / ((case.times - few) * case.units) as f64
}

/// Instructions of a whole run.
fn total(case: &Case, times: usize) -> u64 {
    let out = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no"])
        .arg("--cachegrind-out-file=/dev/null")
        .arg(std::env::current_exe().unwrap())
        .args([REPEAT, &case.name, &times.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("valgrind: {e}; apt-get install valgrind"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {said}", case.name);
    // "==PID== I   refs:      1,234,567"
    let digits = said
        .lines()
        .find_map(|line| line.split_once("refs:"))
        .map(|(_, number)| number.trim().replace(',', ""));
    digits
        .and_then(|d| d.parse().ok())
        .unwrap_or_else(|| panic!("valgrind counted nothing: {said}"))
}
