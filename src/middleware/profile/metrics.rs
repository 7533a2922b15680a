use super::stage::Stage;
use super::state::State;
use crate::base::metrics::{Families, Kind, Labels};

pub(super) fn collect(state: &State, families: &mut Families) {
    for (route, measures) in state.routes.all(&state.name, |_| true) {
        let of_route = Labels::new()
            .with("name", state.name.to_string())
            .with("route", route.to_owned());
        for stage in Stage::ALL {
            let polls = measures.polls(stage);
            let labels = of_route.clone().with("stage", stage.as_str());
            // From the beginning, so that the first one is seen to be one more.
            families
                .family(
                    Kind::Counter,
                    "tower_flow_profile_blocked_polls",
                    "Polls that took longer than a second",
                )
                .push(labels.clone(), polls.blocked);
            if polls.count == 0 {
                continue;
            }
            let mut counter = |name, help, value: f64| {
                families
                    .family(Kind::Counter, name, help)
                    .push(labels.clone(), value);
            };
            counter("tower_flow_profile_polls", "Polls", polls.count as f64);
            counter(
                "tower_flow_profile_busy_seconds",
                "Time within polls, without profiled layers further inside",
                polls.own.as_secs_f64(),
            );
            counter(
                "tower_flow_profile_slow_polls",
                "Polls that took longer than the threshold",
                polls.slow as f64,
            );
            families
                .family(
                    Kind::Gauge,
                    "tower_flow_profile_max_poll_seconds",
                    "The longest poll so far",
                )
                .greatest()
                .push(labels, polls.max.as_secs_f64());
        }
        let delays = measures.delays();
        if delays.count == 0 {
            continue;
        }
        families
            .family(
                Kind::Counter,
                "tower_flow_profile_wakeups",
                "Wake-ups whose delay was taken",
            )
            .push(of_route.clone(), delays.count);
        families
            .family(
                Kind::Counter,
                "tower_flow_profile_wake_delay_seconds",
                "Time between those wake-ups and the polls that followed",
            )
            .push(of_route, delays.sum.as_secs_f64());
    }
}
