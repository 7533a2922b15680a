//! What goes wrong for each alert.

use super::faults::{self, Scrapes};
use super::series::{Course, Series};

pub struct Case {
    pub alert: &'static str,
    pub ill: Ill,
    /// Minutes after the end of the fault until it must have cleared.
    pub clears: u64,
}

pub enum Ill {
    /// Captured: each minute of the fault adds what the first one added.
    Driven(fn() -> Scrapes),
    /// Set on top of series that were captured without it.
    Set(Vec<Set>),
}

/// What one metric does, on all series with these labels.
pub struct Set {
    metric: &'static str,
    labels: &'static [(&'static str, &'static str)],
    /// Of a histogram: what is fallen ill takes longer than so many seconds.
    longer: Option<f64>,
    well: Course,
    ill: Course,
    after: Course,
}

type Labels = &'static [(&'static str, &'static str)];

/// A gauge that is `well`, then `ill`.
fn gauge(metric: &'static str, labels: Labels, well: f64, ill: f64) -> Set {
    set(metric, labels, Course::Is(well), Course::Is(ill))
}

/// A counter that grows so much a minute while all is well, and so much while it is not.
fn counter(metric: &'static str, labels: Labels, well: f64, ill: f64) -> Set {
    set(metric, labels, Course::Grows(well), Course::Grows(ill))
}

/// A histogram of sixty events a minute: at once, then all of them longer than so many seconds.
fn slow(metric: &'static str, labels: Labels, seconds: f64) -> Set {
    Set {
        longer: Some(seconds),
        ..counter(metric, labels, 60.0, 60.0)
    }
}

fn set(metric: &'static str, labels: Labels, well: Course, ill: Course) -> Set {
    Set {
        metric,
        labels,
        longer: None,
        well,
        ill,
        after: well,
    }
}

impl Set {
    pub fn is_of(&self, series: &Series) -> bool {
        series.has(self.metric, self.labels)
    }

    /// Before, ill, after.
    pub fn of(&self, series: &Series) -> [Course; 3] {
        let ill = match self.longer {
            Some(longer) if series.bound() <= longer => Course::Grows(0.0),
            _ => self.ill,
        };
        [self.well, ill, self.after]
    }
}

/// Twenty minutes are more than the windows of all but some alerts.
const CLEARS: u64 = 20;

fn driven(alert: &'static str, ill: fn() -> Scrapes) -> Case {
    Case {
        alert,
        ill: Ill::Driven(ill),
        clears: CLEARS,
    }
}

fn case<const N: usize>(alert: &'static str, sets: [Set; N]) -> Case {
    Case {
        alert,
        ill: Ill::Set(sets.into()),
        clears: CLEARS,
    }
}

impl Case {
    fn clears(self, clears: u64) -> Self {
        Self { clears, ..self }
    }
}

pub fn all() -> Vec<Case> {
    [
        scrape(),
        calls(),
        shed(),
        clients(),
        nats(),
        many(),
        process(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn scrape() -> Vec<Case> {
    let gone = || set("tower_flow_info", &[], Course::Is(1.0), Course::Gone);
    vec![
        case("TowerFlowScrapeDown", [gauge("up", &[], 1.0, 0.0), gone()]),
        case("TowerFlowAbsent", [gone()]),
    ]
}

fn calls() -> Vec<Case> {
    let late = faults::failing_and_late;
    let grpc = faults::grpc_failing_late_and_cut;
    vec![
        driven("TowerFlowLatencyHigh", late),
        driven("TowerFlowErrorBudgetFast", late),
        driven("TowerFlowErrorBudgetMedium", late).clears(40),
        driven("TowerFlowErrorBudgetSlow", late).clears(130),
        driven("TowerFlowPanics", faults::panicking),
        case(
            "TowerFlowReadyWait",
            [slow(
                "tower_flow_timing_ready_seconds_bucket",
                &[("route", "other")],
                0.25,
            )],
        ),
        driven("TowerFlowGrpcServerErrors", grpc),
        driven("TowerFlowGrpcClientErrors", grpc),
        driven("TowerFlowGrpcSlow", grpc),
        driven("TowerFlowGrpcTruncated", grpc),
    ]
}

fn shed() -> Vec<Case> {
    vec![
        driven("TowerFlowShedding", faults::shedding),
        driven("TowerFlowSheddingCritical", faults::shedding),
        driven("TowerFlowShedLimitAtFloor", faults::shedding),
        case(
            "TowerFlowShedLimitCollapsed",
            [
                gauge("tower_flow_shed_limit", &[], 100.0, 12.0),
                counter(
                    "tower_flow_shed_rejected_total",
                    &[("reason", "limit"), ("priority", "default")],
                    0.0,
                    30.0,
                ),
            ],
        ),
        case(
            "TowerFlowShedQueueWait",
            [slow("tower_flow_shed_queue_wait_seconds_bucket", &[], 0.1)],
        ),
        driven("TowerFlowShedPressure", faults::pressed),
        case(
            "TowerFlowShedSignalFailing",
            [counter("tower_flow_shed_signal_stale_total", &[], 0.0, 1.0)],
        ),
        driven("TowerFlowShedDryRun", faults::left_switched),
        driven("TowerFlowShedPaused", faults::left_switched),
    ]
}

fn clients() -> Vec<Case> {
    vec![
        driven("TowerFlowThrottling", faults::throttled),
        driven("TowerFlowThrottleStuck", faults::throttled),
        driven("TowerFlowRetryBudgetEmpty", faults::throttled),
        case(
            "TowerFlowConnectionsFailing",
            [
                counter("tower_flow_connections_opened_total", &[], 60.0, 50.0),
                counter("tower_flow_connections_failed_total", &[], 0.0, 10.0),
            ],
        ),
        case(
            "TowerFlowPoolAtCap",
            [
                gauge(
                    "tower_flow_pool_connections",
                    &[("state", "active")],
                    9.0,
                    511.0,
                ),
                gauge("tower_flow_pool_pending_requests", &[], 0.0, 7.0),
            ],
        ),
        case(
            "TowerFlowPoolWait",
            [slow(
                "tower_flow_pool_wait_seconds_bucket",
                &[("outcome", "granted")],
                0.5,
            )],
        ),
        case(
            "TowerFlowPoolRejecting",
            [counter(
                "tower_flow_pool_rejected_total",
                &[("reason", "timeout")],
                0.0,
                6.0,
            )],
        ),
        driven("TowerFlowPoolDialsFailing", faults::dials_failing),
        case(
            "TowerFlowPoolLimitWaiting",
            [
                gauge("tower_flow_pool_limit_held", &[], 3.0, 8.0),
                gauge("tower_flow_pool_limit_waiting", &[], 0.0, 2.0),
            ],
        ),
        case(
            "TowerFlowPoolLimitRefusing",
            [counter(
                "tower_flow_pool_limit_refused_total",
                &[("reason", "queue_timeout")],
                0.0,
                3.0,
            )],
        ),
    ]
}

fn nats() -> Vec<Case> {
    const REQUESTS: &str = "tower_flow_nats_requests_total";
    const CONNECTIONS: &str = "tower_flow_nats_connections";
    const CONNECTS: &str = "tower_flow_nats_connects_total";
    const LAG: &str = "tower_flow_nats_lag";
    const STATE: &str = "tower_flow_nats_lag_state";
    const ORDERS: Labels = &[("name", "orders")];
    vec![
        case(
            "TowerFlowNatsDown",
            [
                gauge(CONNECTIONS, &[("state", "up")], 2.0, 0.0),
                gauge(CONNECTIONS, &[("state", "down")], 0.0, 2.0),
            ],
        ),
        case(
            "TowerFlowNatsFailing",
            [
                counter(REQUESTS, &[("result", "ok")], 60.0, 50.0),
                counter(REQUESTS, &[("result", "timed_out")], 0.0, 10.0),
            ],
        ),
        case(
            "TowerFlowNatsConnectsFailing",
            [
                counter(CONNECTS, &[("result", "ok")], 1.0, 1.0),
                counter(CONNECTS, &[("result", "error")], 0.0, 9.0),
            ],
        ),
        case(
            "TowerFlowNatsLosing",
            [counter("tower_flow_nats_lost_total", &[], 0.0, 1.0)],
        ),
        case(
            "TowerFlowNatsFull",
            [
                gauge("tower_flow_nats_utilisation", ORDERS, 0.1, 1.0),
                gauge("tower_flow_nats_waiting", ORDERS, 0.0, 7.0),
            ],
        ),
        case(
            "TowerFlowNatsWait",
            [slow("tower_flow_nats_wait_seconds_bucket", &[], 0.5)],
        ),
        case(
            "TowerFlowNatsRefusing",
            [counter(REQUESTS, &[("result", "overloaded")], 0.0, 6.0)],
        ),
        case(
            "TowerFlowNatsLagGrowing",
            [set(LAG, &[], Course::Is(40.0), Course::Grows(500.0))],
        ),
        case("TowerFlowNatsLagCritical", [gauge(LAG, &[], 40.0, 2e4)]),
        case(
            "TowerFlowNatsLagSaturated",
            [gauge("tower_flow_nats_lag_saturation", &[], 0.1, 1.0)],
        ),
        case(
            "TowerFlowNatsConsumerStuck",
            [
                gauge(STATE, &[("state", "flowing")], 1.0, 0.0),
                gauge(STATE, &[("state", "stuck")], 0.0, 1.0),
            ],
        ),
        case(
            "TowerFlowNatsConsumerMissing",
            [
                gauge(STATE, &[("state", "flowing")], 1.0, 0.0),
                gauge(STATE, &[("state", "consumer_missing")], 0.0, 1.0),
            ],
        ),
        case(
            "TowerFlowNatsLagUnknown",
            [
                gauge(STATE, &[("state", "flowing")], 1.0, 0.0),
                gauge(STATE, &[("state", "away")], 0.0, 1.0),
                set(LAG, &[], Course::Is(40.0), Course::Gone),
            ],
        ),
    ]
}

fn many() -> Vec<Case> {
    const ITEMS: &str = "tower_flow_batch_items_total";
    vec![
        driven("TowerFlowCoalesceNoSavings", faults::nothing_to_share),
        driven("TowerFlowCoalescePaused", faults::coalescing_is_paused),
        case(
            "TowerFlowCoalesceBypass",
            [counter(
                "tower_flow_coalesce_requests_total",
                &[("reason", "max_keys")],
                0.0,
                30.0,
            )],
        ),
        case(
            "TowerFlowCoalesceEvicting",
            [counter(
                "tower_flow_coalesce_body_evicted_total",
                &[],
                0.0,
                1.0,
            )],
        ),
        driven("TowerFlowBatchFailing", faults::batches_failing),
        case(
            "TowerFlowBatchRejecting",
            [counter(ITEMS, &[("result", "rejected")], 0.0, 30.0)],
        ),
        case(
            "TowerFlowBatchExpired",
            [
                counter(ITEMS, &[("result", "ok")], 60.0, 50.0),
                counter(ITEMS, &[("result", "expired")], 0.0, 10.0),
            ],
        ),
        case(
            "TowerFlowBatchWait",
            [slow("tower_flow_batch_wait_seconds_bucket", &[], 1.0)],
        ),
        case(
            "TowerFlowBatchUnknown",
            [counter("tower_flow_batch_unknown_total", &[], 0.0, 1.0)],
        ),
    ]
}

fn process() -> Vec<Case> {
    const FUTURE: Labels = &[("stage", "future")];
    vec![
        case(
            "TowerFlowSlowPolls",
            [
                counter("tower_flow_profile_polls_total", FUTURE, 600.0, 600.0),
                counter("tower_flow_profile_slow_polls_total", FUTURE, 0.0, 120.0),
            ],
        ),
        case(
            "TowerFlowWorkerBlocked",
            [counter(
                "tower_flow_profile_blocked_polls_total",
                FUTURE,
                0.0,
                2.0,
            )],
        ),
        case(
            "TowerFlowCpuNearQuota",
            [gauge("tower_flow_cpu_ratio", &[], 0.4, 0.97)],
        ),
        case(
            "TowerFlowCpuThrottled",
            [gauge("tower_flow_cpu_throttled_ratio", &[], 0.0, 0.3)],
        ),
        case(
            "TowerFlowRunQueueWait",
            [
                counter("tower_flow_cpu_seconds_total", &[], 30.0, 30.0),
                counter("tower_flow_run_queue_seconds_total", &[], 1.0, 24.0),
            ],
        ),
        case(
            "TowerFlowPressureStall",
            [gauge(
                "tower_flow_psi_ratio",
                &[("resource", "memory")],
                0.0,
                0.6,
            )],
        ),
        case(
            "TowerFlowSchedulerSaturated",
            [
                gauge("tower_flow_scheduler_busy_ratio", &[], 0.5, 0.99),
                gauge("tower_flow_scheduler_queue_depth", &[], 0.0, 40.0),
            ],
        ),
        case(
            "TowerFlowWakeDelay",
            [gauge(
                "tower_flow_scheduler_wake_delay_seconds",
                &[],
                0.001,
                0.2,
            )],
        ),
    ]
}
