//! The live page, and at the end what it knows of where the time went.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tower_flow::inspect::{HotPath, Value};
use tower_flow::profile::{CpuUsage, SchedulerUsage};
use tower_flow::{BoxError, Flow};

use crate::report::Act;

/// How many hot paths are told.
const ROWS: usize = 12;

/// What stays up from the first act to the last.
pub(crate) struct Live {
    pub(crate) flow: Flow,
    pub(crate) url: String,
    /// The same with the token, for the person who runs this.
    pub(crate) link: String,
    cpu: CpuUsage,
}

/// Where the time went.
pub(crate) struct Hot {
    paths: Vec<HotPath>,
    overhead: Vec<(String, Duration)>,
    cpu: Option<Duration>,
    problems: Vec<String>,
}

impl Live {
    /// Serves the page, and says where.
    pub(crate) async fn serve() -> Result<Self, BoxError> {
        let flow = Flow::new("showcase");
        let cpu = CpuUsage::new().attach(&flow);
        let _scheduler = SchedulerUsage::new("main").attach(&flow);
        // Anew for each run: knobs and profiles are for who has the address from here.
        let token = format!(
            "{:032x}",
            u128::from(RandomState::new().hash_one(0)) << 64
                | u128::from(RandomState::new().hash_one(1))
        );
        let admin = flow
            .admin()
            .token(&token)
            .bind("127.0.0.1:0".parse()?)
            .await?;
        let url = format!("http://{}/", admin.local_addr());
        let link = format!("{url}#token={token}");
        tokio::spawn(admin.run());
        // From here on, one call in 64 tells what each layer costs.
        flow.overhead();
        eprintln!("live on {link}");
        Ok(Self {
            flow,
            url,
            link,
            cpu,
        })
    }

    /// What all layers together know.
    pub(crate) fn hot(&self) -> Hot {
        let layers = self.flow.attached();
        let mut paths: Vec<_> = layers.iter().flat_map(|layer| layer.hot()).collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.busy));
        paths.truncate(ROWS);
        let overhead = self.flow.overhead().into_iter().map(|overhead| {
            let layer = &layers[overhead.layer];
            (
                format!("{} {}", layer.kind(), layer.name()),
                overhead.per_call,
            )
        });
        let mut hot = Hot {
            paths,
            overhead: overhead.collect(),
            cpu: self.cpu.snapshot().used,
            problems: Vec::new(),
        };
        if hot.paths.iter().all(|path| path.busy.is_zero()) {
            hot.problems
                .push("calls were made and no poll took any time".into());
        }
        if hot.overhead.is_empty() {
            hot.problems
                .push("calls were made and no layer cost anything".into());
        }
        hot
    }
}

impl Act for Hot {
    fn name(&self) -> &'static str {
        "hot"
    }

    fn print(&self) {
        let cpu = self.cpu.unwrap_or_default().as_secs_f64();
        println!("hot paths, of {cpu:.1} s of CPU time");
        println!(
            "  {:<10}{:<40}{:<8}{:>9}{:>10}{:>9}{:>12}{:>7}",
            "layer", "route", "stage", "polls", "busy s", "share", "longest ms", "slow"
        );
        for path in &self.paths {
            let share = path
                .share
                .map_or("-".into(), |share| format!("{:.1} %", share * 100.0));
            println!(
                "  {:<10}{:<40}{:<8}{:>9}{:>10.3}{share:>9}{:>12.2}{:>7}",
                path.layer,
                path.route,
                path.stage,
                path.polls,
                path.busy.as_secs_f64(),
                path.max.as_secs_f64() * 1e3,
                path.slow
            );
        }
        let each: Vec<_> = self
            .overhead
            .iter()
            .map(|(layer, cost)| format!("{layer} {:.2} µs", cost.as_secs_f64() * 1e6))
            .collect();
        println!("\nwhat each layer itself costs a call: {}", each.join(", "));
        for problem in &self.problems {
            println!("  {problem}");
        }
    }

    fn json(&self) -> Value {
        let paths = self.paths.iter().map(|path| {
            Value::map([
                ("layer", path.layer.as_str().into()),
                ("route", path.route.as_str().into()),
                ("stage", path.stage.into()),
                ("polls", path.polls.into()),
                ("busy", path.busy.into()),
                ("max", path.max.into()),
                ("slow", path.slow.into()),
                ("share", path.share.map_or(Value::Null, Value::from)),
            ])
        });
        let overhead = self
            .overhead
            .iter()
            .map(|(layer, cost)| (layer.clone(), (*cost).into()));
        let problems = self.problems.iter().map(|problem| problem.as_str().into());
        Value::map([
            ("cpu", self.cpu.map_or(Value::Null, Value::from)),
            ("paths", Value::list(paths)),
            ("overhead", Value::map(overhead)),
            ("problems", Value::list(problems)),
        ])
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}
