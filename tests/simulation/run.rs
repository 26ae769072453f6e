//! A single run of a seed.

use std::cell::RefCell;
use std::fmt;
use std::panic;
use std::sync::{Arc, Mutex, Once};

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use twincast_core::ports::Clock;
use twincast_testkit::sim::{Broker, Bug, Chance, Observer, Sim, Trace};
use twincast_testkit::{MemoryStore, RuntimeClock};

use crate::auditor::{Auditor, Figures};
use crate::engine::Engine;
use crate::world::{MAX_LOST_WRITES, Plan};

/// The settings of a run.
#[derive(Clone)]
pub(crate) struct Setup {
    /// A defect of the doubles.
    pub(crate) bug: Option<Bug>,
    /// Events are lost now and then.
    pub(crate) loses_events: bool,
    /// The store crashes now and then, and loses the last writes.
    pub(crate) loses_writes: bool,
    /// Changes the world before the start, but not the auditor's expectations.
    pub(crate) tweak: fn(&mut Plan),
    /// The number of trace lines to keep.
    pub(crate) lines: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            bug: None,
            loses_events: false,
            loses_writes: false,
            tweak: |_| {},
            lines: 200,
        }
    }
}

impl Setup {
    pub(crate) fn with_lines(self, lines: usize) -> Self {
        Self { lines, ..self }
    }
}

/// The result of a run.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seed = self.plan.seed;
        writeln!(f, "{:#?}", self.plan)?;
        for line in self.trace.lines() {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {seed}: {:?}", self.figures)?;
        for violation in self.violations.iter().take(10) {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        writeln!(
            f,
            "replay: TWINCAST_SIM_SEED={seed} cargo test --test simulation -- promises --nocapture"
        )
    }
}

/// Runs the world of a seed to the end.
pub(crate) fn run(seed: u64, setup: &Setup) -> Report {
    let plan = Plan::of(seed);
    let plan = if setup.loses_writes {
        plan.with_lost_writes()
    } else {
        plan
    };
    let mut world = plan.clone();
    (setup.tweak)(&mut world);
    twincast_retry::seed_thread(seed);
    listen_for_panics();
    PANICS.with_borrow_mut(|panics| *panics = Some(Vec::new()));
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (auditor, trace) = runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let auditor = Arc::new(Auditor::new(plan.clone()));
        let sim = Sim::new(
            Chance::of(seed),
            world.faults.clone(),
            Arc::clone(&auditor) as Arc<dyn Observer>,
            Trace::new(setup.lines),
            setup.bug,
        );
        let truth = MemoryStore::new(Arc::clone(&clock));
        if setup.loses_writes && setup.bug != Some(Bug::NotDurable) {
            truth.set_durable_after(MAX_LOST_WRITES);
        }
        if setup.bug == Some(Bug::NoStages) {
            truth.ignore_stages();
        }
        let engine = Arc::new(Engine {
            broker: Broker::new(&sim, 1_000),
            truth,
            plan: world,
            sim: sim.clone(),
            auditor: Arc::clone(&auditor),
            clock,
            loses_events: setup.loses_events,
            end: CancellationToken::new(),
            stops: Mutex::default(),
        });
        engine.run().await;
        (auditor, sim.trace())
    });
    drop(runtime);
    let panics = PANICS.with_borrow_mut(Option::take).unwrap_or_default();
    let violations = auditor.violations();
    Report {
        plan,
        violations: panics.into_iter().chain(violations).collect(),
        trace,
        figures: auditor.figures(),
    }
}

thread_local! {
    /// The panics of this thread during the simulation: tasks do not report panics.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_ours = PANICS.with_borrow_mut(|panics| {
                panics
                    .iter_mut()
                    .for_each(|panics| panics.push(info.to_string()));
                panics.is_some()
            });
            if !is_ours {
                before(info);
            }
        }));
    });
}
