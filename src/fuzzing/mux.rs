//! The multiplexer as a whole: random things happen to both ends of a tunnel, or to one whose peer is hostile, and a model
//! beside them knows what must come out. No sockets, no tasks, and a clock that goes when it is told to.

mod hostile;
mod scene;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use self::scene::Trace;

/// Whatever is decided in a run.
trait Choices {
    /// A number below `n`, which is no more than 65,536.
    fn below(&mut self, n: u32) -> u32;
    /// Nothing more is to happen.
    fn is_over(&self) -> bool;

    /// True once in so many times.
    fn once_in(&mut self, n: u32) -> bool {
        self.below(n) == n - 1
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.below(u32::try_from(all.len()).unwrap());
        all[at as usize]
    }
}

/// By what a fuzzer says.
struct Said<'a>(&'a [u8]);

impl Choices for Said<'_> {
    fn below(&mut self, n: u32) -> u32 {
        let mut number = 0;
        for _ in 0..if n <= 256 { 1 } else { 2 } {
            let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
            self.0 = rest;
            number = number << 8 | u32::from(*first);
        }
        number % n
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

/// By a seed, so many steps long.
struct Seeded {
    random: StdRng,
    steps: u32,
}

impl Choices for Seeded {
    fn below(&mut self, n: u32) -> u32 {
        self.steps = self.steps.saturating_sub(1);
        self.random.random_range(0..n)
    }

    fn is_over(&self) -> bool {
        self.steps == 0
    }
}

/// First byte: 0 for two ends, 1 for one whose peer is hostile. The others decide what happens.
pub fn mux(bytes: &[u8]) {
    match bytes {
        [0, rest @ ..] => drop(scene::play(Said(rest))),
        [1, rest @ ..] => hostile::play(Said(rest)),
        _ => {}
    }
}

/// Two ends, by a seed.
pub fn simulate(seed: u64) -> Trace {
    scene::play(Seeded {
        random: StdRng::seed_from_u64(seed),
        steps: 1500,
    })
}

/// One end, whose peer is hostile.
pub fn attack(seed: u64) {
    hostile::play(Seeded {
        random: StdRng::seed_from_u64(seed),
        steps: 1500,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many schedules are always the same; more by `KITE_SIM_COUNT`.
    const FIXED: u64 = 1000;
    /// And so many are new each time.
    const NEW: u64 = 100;

    /// Runs them all, and says which one fails. `KITE_SIM_SEED` runs that one alone.
    fn all(run: impl Fn(u64) + std::panic::RefUnwindSafe) {
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .map(|n| n.parse().expect("a number"))
        };
        if let Some(seed) = number("KITE_SIM_SEED") {
            return run(seed);
        }
        let fixed = 0..number("KITE_SIM_COUNT").unwrap_or(FIXED);
        let new: Vec<u64> = (0..NEW).map(|_| rand::random()).collect();
        for seed in fixed.chain(new) {
            let done = std::panic::catch_unwind(|| run(seed));
            assert!(done.is_ok(), "KITE_SIM_SEED={seed} shows it again");
        }
    }

    #[test]
    fn what_is_delivered_is_what_was_sent_whatever_happens() {
        all(|seed| {
            simulate(seed);
        });
    }

    #[test]
    fn a_hostile_peer_breaks_no_bound() {
        all(attack);
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        let runs: Vec<Trace> = (0..50).map(simulate).collect();
        for (seed, first) in runs.iter().enumerate() {
            assert_eq!(simulate(seed as u64), *first, "seed {seed}");
        }
        let mut different = runs.clone();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 45, "the trace says too little");
    }

    /// What the runs meet: a simulation in which nothing happens finds nothing.
    #[test]
    fn everything_happens_now_and_then() {
        let mut all = Trace::default();
        for seed in 0..200 {
            all.add(&simulate(seed));
        }
        let counts = [
            all.opened,
            all.delivered,
            all.ended,
            all.aborted,
            all.refused,
            all.died,
            all.waited,
            all.moved / 1_000_000,
        ];
        assert!(counts.iter().all(|n| *n > 3), "{all:?}");
    }
}
