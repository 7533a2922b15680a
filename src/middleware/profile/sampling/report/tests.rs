use super::*;

fn text(text: &str) -> Arc<str> {
    text.into()
}

/// Three stacks: one in a route with a hostile name, one without a route, one that was dropped.
fn profile() -> Profile {
    let function = |name: &str| Function {
        name: text(name),
        file: Some(text("src/main.rs")),
    };
    let location = |address, functions: &[u32]| Location {
        address,
        module: Some(0),
        lines: functions
            .iter()
            .map(|function| Line {
                function: *function,
                line: 7,
            })
            .collect(),
    };
    let mut counts = Counts::new(100, SystemTime::UNIX_EPOCH);
    counts.duration = Duration::from_secs(1);
    counts.samples = 10;
    counts.tagged = 7;
    counts.dropped = 2;
    Profile {
        counts,
        threads: vec!["tokio-rt-worker".into(), "a;b\n c".into()],
        tags: vec![
            (text("api"), text("/<script>alert(1)</script>;\n")),
            (text(""), text("plain")),
        ],
        functions: vec![
            function("main"),
            function("<[u8; 4] as Sum>::sum"),
            function("inlined \"&\""),
        ],
        modules: vec![Module {
            start: 0x1000,
            end: 0x9000,
            offset: 0,
            path: text("/usr/bin/app"),
        }],
        locations: vec![location(0x1000, &[0]), location(0x2000, &[2, 1])],
        stacks: vec![
            Stack {
                tag: Some(0),
                thread: 0,
                locations: vec![1, 0],
                count: 5,
            },
            Stack {
                tag: None,
                thread: 1,
                locations: vec![0],
                count: 3,
            },
            Stack {
                tag: Some(1),
                thread: 0,
                locations: vec![],
                count: 2,
            },
        ],
    }
}

#[test]
fn folded_lines_hold_route_thread_and_frames_and_nothing_that_breaks_them() {
    assert_eq!(
        profile().folded(),
        "(no route);a,b  c;main 3\n\
         api /<script>alert(1)</script>, ;tokio-rt-worker;main;<[u8, 4] as Sum>::sum;inlined \"&\" 5\n\
         plain;tokio-rt-worker;(stack dropped) 2\n"
    );
}

#[test]
fn equal_lines_are_one() {
    let mut profile = profile();
    profile.stacks = (0..3)
        .map(|count| Stack {
            tag: None,
            thread: 0,
            locations: vec![0],
            count,
        })
        .collect();
    assert_eq!(profile.folded(), "(no route);tokio-rt-worker;main 3\n");
}

#[test]
fn a_flame_graph_escapes_what_it_draws() {
    let svg = profile().svg();
    assert!(svg.contains("&lt;script&gt;alert(1)"), "{svg}");
    assert!(!svg.contains("<script>alert"), "{svg}");
    assert!(svg.contains("10 samples in 1.0 s at 100 Hz"), "{svg}");
    // Its own script is the only one, and nothing is fetched.
    assert_eq!(svg.matches("<script").count(), 1);
    for from_outside in ["href=\"http", "src=\"", "url(http", "@import"] {
        assert!(!svg.contains(from_outside), "{from_outside} in {svg}");
    }
}

#[test]
fn nothing_at_all_can_be_drawn_too() {
    let mut profile = profile();
    profile.stacks.clear();
    profile.counts.samples = 0;
    assert_eq!(profile.folded(), "");
    assert!(profile.svg().contains("<svg"));
    assert!(!profile.pprof().is_empty());
    assert_eq!(profile.routes()[0].share, 0.0);
}

#[test]
fn routes_are_ranked_by_samples() {
    let routes = profile().routes();
    let ranked: Vec<_> = routes
        .iter()
        .map(|route| (&*route.layer, route.samples, route.share))
        .collect();
    assert_eq!(ranked, [("api", 5, 0.5), ("", 2, 0.2)]);
    let value = profile().to_value();
    assert_eq!(value.get("tagged_share"), Some(&Value::Number(0.7)));
    assert!(!value.to_string().contains('<'));
}
