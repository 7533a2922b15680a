//! The live page, and at the end what it knows of where the time went.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tower_flow::inspect::{HotPath, Value};
use tower_flow::profile::{CpuUsage, SchedulerUsage};
use tower_flow::{BoxError, Flow};

use crate::report::{Act, Table};

/// How many hot paths are told.
const ROWS: usize = 12;

/// What stays up from the first act to the last.
pub(crate) struct Live {
    pub(crate) flow: Flow,
    pub(crate) url: String,
    cpu: CpuUsage,
}

/// Where the time went.
pub(crate) struct Hot {
    paths: Vec<HotPath>,
    cpu: Option<Duration>,
    problems: Vec<String>,
}

/// What each layer itself takes of a call.
pub(crate) struct Costs {
    rows: Vec<Paid>,
    problems: Vec<String>,
}

struct Paid {
    layer: String,
    each: Duration,
    sampled: u64,
    inside: String,
}

impl Live {
    /// Serves the page, and says where: on stdout, or beside the object for machines.
    pub(crate) async fn serve(json: bool) -> Result<Self, BoxError> {
        let flow = Flow::new("showcase");
        let cpu = CpuUsage::new().attach(&flow);
        let _scheduler = SchedulerUsage::new("main").attach(&flow);
        // Anew for each run: knobs and profiles are for who has the address from here.
        let random = || RandomState::new().hash_one(0);
        let token = format!("{:016x}{:016x}", random(), random());
        let admin = flow
            .admin()
            .token(&token)
            .bind("127.0.0.1:0".parse()?)
            .await?;
        let url = format!("http://{}/", admin.local_addr());
        tokio::spawn(admin.run());
        // From here on, one call in 64 tells what each layer costs.
        flow.overhead();
        match json {
            true => eprintln!("live on {url}#token={token}"),
            false => println!("live on {url}#token={token}"),
        }
        Ok(Self { flow, url, cpu })
    }

    /// Where all layers together say the time went.
    pub(crate) fn hot(&self) -> Hot {
        let layers = self.flow.attached();
        let mut paths: Vec<_> = layers.iter().flat_map(|layer| layer.hot()).collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.busy));
        paths.truncate(ROWS);
        let mut problems = Vec::new();
        if paths.iter().all(|path| path.busy.is_zero()) {
            problems.push("calls were made and no poll took any time".into());
        }
        Hot {
            paths,
            cpu: self.cpu.snapshot().used,
            problems,
        }
    }

    /// What each of them took.
    pub(crate) fn costs(&self) -> Costs {
        let layers = self.flow.attached();
        let name = |id: usize| format!("{} {}", layers[id].kind(), layers[id].name());
        let rows = self.flow.overhead().into_iter().map(|overhead| Paid {
            layer: name(overhead.layer),
            each: overhead.per_call,
            sampled: overhead.sampled,
            inside: overhead.inside.map_or("-".into(), name),
        });
        let rows: Vec<_> = rows.collect();
        let mut problems = Vec::new();
        if rows.is_empty() {
            problems.push("calls were made and no layer cost anything".into());
        }
        Costs { rows, problems }
    }
}

impl Act for Hot {
    fn name(&self) -> &'static str {
        "hot"
    }

    fn task(&self) -> String {
        let cpu = self.cpu.unwrap_or_default().as_secs_f64();
        format!("where {cpu:.1} s of CPU time went, as far as layers with a profile saw it")
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "layer",
            "route",
            "stage",
            "polls",
            "busy s",
            "share",
            "longest ms",
            "slow",
        ]);
        for path in &self.paths {
            let share = path
                .share
                .map_or("-".into(), |share| format!("{:.1} %", share * 100.0));
            table.row([
                path.layer.clone(),
                path.route.clone(),
                path.stage.into(),
                path.polls.to_string(),
                format!("{:.3}", path.busy.as_secs_f64()),
                share,
                format!("{:.2}", path.max.as_secs_f64() * 1e3),
                path.slow.to_string(),
            ]);
        }
        table
    }

    fn verdict(&self) -> String {
        let hottest = self
            .paths
            .first()
            .map(|path| format!("{} in {}", path.route, path.layer));
        format!("the hottest path is {}", hottest.unwrap_or_default())
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
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
        vec![
            ("cpu", self.cpu.map_or(Value::Null, Value::from)),
            ("paths", Value::list(paths)),
        ]
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl Act for Costs {
    fn name(&self) -> &'static str {
        "overhead"
    }

    fn task(&self) -> String {
        "what each layer's own code takes of a call, in the median".into()
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["layer", "µs a call", "calls looked at", "inside of"]);
        for row in &self.rows {
            table.row([
                row.layer.clone(),
                format!("{:.2}", 1e6 * row.each.as_secs_f64()),
                row.sampled.to_string(),
                row.inside.clone(),
            ]);
        }
        table
    }

    fn verdict(&self) -> String {
        let dearest = self.rows.iter().max_by_key(|row| row.each);
        let dearest =
            dearest.map(|row| format!("{} with {:.2} µs", row.layer, 1e6 * row.each.as_secs_f64()));
        format!("the dearest is {}", dearest.unwrap_or_default())
    }

    fn json(&self) -> Vec<(&'static str, Value)> {
        let rows = self.rows.iter().map(|row| {
            Value::map([
                ("layer", row.layer.as_str().into()),
                ("per_call", row.each.into()),
                ("sampled", row.sampled.into()),
                ("inside", row.inside.as_str().into()),
            ])
        });
        vec![("rows", Value::list(rows))]
    }

    fn problems(&self) -> &[String] {
        &self.problems
    }
}
