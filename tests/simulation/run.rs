//! One run of one seed.

use std::cell::RefCell;
use std::fmt;
use std::panic;
use std::sync::{Arc, Mutex, Once};

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use twincast_core::ports::Clock;
use twincast_testkit::sim::{Broker, Bug, Chance, Sim, Trace, Watch};
use twincast_testkit::{MemoryStore, RuntimeClock};

use crate::account::{Account, Figures};
use crate::engine::Engine;
use crate::world::{FORGETS, Plan};

/// How seeds are run.
#[derive(Clone)]
pub(crate) struct Setup {
    /// A defect that the doubles have.
    pub(crate) bug: Option<Bug>,
    /// Events are forgotten, now and then.
    pub(crate) forgets_events: bool,
    /// The store crashes now and then, and forgets its last writes.
    pub(crate) forgets: bool,
    /// Changes the world before it begins, but not what the account expects of it.
    pub(crate) tweak: fn(&mut Plan),
    /// Lines of the trace that are kept.
    pub(crate) lines: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            bug: None,
            forgets_events: false,
            forgets: false,
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

/// How a run went.
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) wrong: Vec<String>,
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
        for wrong in self.wrong.iter().take(10) {
            writeln!(f, "WRONG: {wrong}")?;
        }
        writeln!(
            f,
            "replay: TWINCAST_SIM_SEED={seed} cargo test --test simulation -- promises --nocapture"
        )
    }
}

/// Runs the world of a seed to its end.
pub(crate) fn run(seed: u64, setup: &Setup) -> Report {
    let plan = Plan::of(seed);
    let plan = if setup.forgets {
        plan.forgetting()
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
    let (account, trace) = runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::default());
        let account = Arc::new(Account::new(plan.clone()));
        let sim = Sim::new(
            Chance::of(seed),
            world.faults.clone(),
            Arc::clone(&account) as Arc<dyn Watch>,
            Trace::new(setup.lines),
            setup.bug,
        );
        let truth = MemoryStore::new(Arc::clone(&clock));
        if setup.forgets && setup.bug != Some(Bug::NotDurable) {
            truth.set_durable_after(FORGETS);
        }
        if setup.bug == Some(Bug::NoStages) {
            truth.forget_stages();
        }
        let engine = Arc::new(Engine {
            broker: Broker::new(&sim, 1_000),
            truth,
            plan: world,
            sim: sim.clone(),
            account: Arc::clone(&account),
            clock,
            forgets_events: setup.forgets_events,
            end: CancellationToken::new(),
            stops: Mutex::default(),
        });
        engine.run().await;
        (account, sim.trace())
    });
    drop(runtime);
    let panics = PANICS.with_borrow_mut(Option::take).unwrap_or_default();
    let wrong = account.wrong();
    Report {
        plan,
        wrong: panics.into_iter().chain(wrong).collect(),
        trace,
        figures: account.figures(),
    }
}

thread_local! {
    /// The panics of this thread, while it simulates: tasks do not tell about theirs.
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
