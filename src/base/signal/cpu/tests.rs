use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::base::clock;

/// A directory with files such as the kernel's, gone at its end.
pub(in crate::base::signal) struct Fake(PathBuf);

impl Fake {
    pub(in crate::base::signal) fn new(name: &str) -> Self {
        let dir = format!("tower-flow-{}-{name}", std::process::id());
        let fake = Self(std::env::temp_dir().join(dir));
        std::fs::create_dir_all(&fake.0).unwrap();
        fake
    }

    pub(in crate::base::signal) fn files(&self) -> Files {
        Files::below(&self.0)
    }

    pub(in crate::base::signal) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let file = self.0.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    fn cores(&self, list: &str) {
        self.write("proc/self/status", format!("Cpus_allowed_list:\t{list}\n"));
    }

    fn v2(&self, group: &str, usage: u64) {
        self.write(
            &format!("sys/fs/cgroup/{group}cpu.stat"),
            format!("usage_usec {usage}\nuser_usec 1\n"),
        );
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn second() {
    tokio::time::advance(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_tightest_level_counts() {
    let fake = Fake::new("cpu_v2");
    fake.write("proc/self/cgroup", "0::/pod/app\n");
    fake.cores("0-7");
    fake.v2("pod/app/", 0);
    fake.write("sys/fs/cgroup/pod/app/cpu.max", "max 100000\n");
    fake.v2("pod/", 0);
    fake.write("sys/fs/cgroup/pod/cpu.max", "150000 100000\n");
    fake.v2("", 0);
    let cpu = CpuSignal::of(fake.files());
    assert_eq!((cpu.sample(), cpu.name()), (None, "cpu"));

    // The app alone: 0.8 of 8 cores. With its sibling: 1.2 of the 1.5 they may use together.
    second().await;
    fake.v2("pod/app/", 800_000);
    fake.v2("pod/", 1_200_000);
    fake.v2("", 7_900_000);
    assert!((cpu.sample().unwrap() - 0.8).abs() < 1e-9);
    assert_eq!(cpu.faults(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_container_sees_its_own_group_in_the_place_of_the_root() {
    let fake = Fake::new("cpu_root");
    fake.write("proc/self/cgroup", "0::/docker/4711\n");
    fake.cores("2,3");
    fake.v2("", 0);
    let cpu = CpuSignal::of(fake.files());
    cpu.sample();
    second().await;
    fake.v2("", 1_000_000);
    assert_eq!(cpu.sample(), Some(0.5));
}

#[tokio::test(start_paused = true)]
async fn a_quota_above_the_cores_is_none() {
    let fake = Fake::new("cpu_wide");
    fake.write("proc/self/cgroup", "0::/\n");
    fake.cores("0");
    fake.v2("", 0);
    fake.write("sys/fs/cgroup/cpu.max", "400000 100000\n");
    let cpu = CpuSignal::of(fake.files());
    let told = CpuSignal::of(fake.files()).cores(2.0);
    assert_eq!((cpu.sample(), told.sample()), (None, None));
    second().await;
    fake.v2("", 1_000_000);
    assert_eq!((cpu.sample(), told.sample()), (Some(1.0), Some(0.5)));
}

#[tokio::test(start_paused = true)]
async fn without_v2_v1_is_asked_and_then_the_process() {
    let fake = Fake::new("cpu_v1");
    fake.write("proc/self/cgroup", "3:cpu,cpuacct:/app\n0::/\n");
    fake.cores("0-3");
    let stat = |ticks: u64| format!("1 (x) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0\n");
    fake.write("proc/self/stat", stat(0));
    let cpu = CpuSignal::of(fake.files());
    assert_eq!(cpu.sample(), None);
    second().await;
    fake.write("proc/self/stat", stat(100));
    assert_eq!(cpu.sample(), Some(0.25), "one of four cores");

    // Another source is another counter.
    second().await;
    fake.write("sys/fs/cgroup/cpuacct/app/cpuacct.usage", "5000000000\n");
    fake.write("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "200000\n");
    fake.write("sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n");
    assert_eq!((cpu.sample(), cpu.faults()), (None, 1));
    second().await;
    fake.write("sys/fs/cgroup/cpuacct/app/cpuacct.usage", "6000000000\n");
    assert_eq!((cpu.sample(), cpu.faults()), (Some(0.5), 1));
    second().await;
    fake.write("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "-1\n");
    fake.write("sys/fs/cgroup/cpuacct/app/cpuacct.usage", "7000000000\n");
    let quarter = cpu.sample().unwrap();
    assert!(
        (quarter - 0.25).abs() < 0.02,
        "{quarter} is nearly a quarter"
    );
}

#[tokio::test(start_paused = true)]
async fn garbage_says_nothing_and_is_counted() {
    let good = [
        ("proc/self/cgroup", "0::/\n"),
        ("proc/self/status", "Cpus_allowed_list:\t0-1\n"),
        ("sys/fs/cgroup/cpu.stat", "usage_usec 10\n"),
        ("sys/fs/cgroup/cpu.max", "max 100000\n"),
        (
            "proc/self/stat",
            "1 (x) S 1 1 1 0 -1 0 0 0 0 0 1 0 0 0 20 0\n",
        ),
    ];
    let bad = [
        ("proc/self/status", &b"Name:\tx\n"[..]),
        ("proc/self/status", b"Cpus_allowed_list:\t7-0\n"),
        ("sys/fs/cgroup/cpu.stat", b""),
        ("sys/fs/cgroup/cpu.stat", b"\xff\xfe\x00"),
        ("sys/fs/cgroup/cpu.stat", b"usage_usec"),
        ("sys/fs/cgroup/cpu.stat", b"usage_usec -1\n"),
        ("sys/fs/cgroup/cpu.stat", b"usage_usec 9\n"),
        (
            "sys/fs/cgroup/cpu.stat",
            b"usage_usec 18446744073709551615\n",
        ),
        (
            "sys/fs/cgroup/cpu.stat",
            b"usage_usec 18446744073709551616\n",
        ),
        ("sys/fs/cgroup/cpu.max", b"max"),
        ("sys/fs/cgroup/cpu.max", b"0 0\n"),
        ("sys/fs/cgroup/cpu.max", b"1 \n"),
    ];
    for (file, text) in bad {
        let fake = Fake::new("cpu_garbage");
        for (file, text) in good {
            fake.write(file, text);
        }
        let cpu = CpuSignal::of(fake.files());
        cpu.sample();
        second().await;
        assert_eq!((cpu.sample(), cpu.faults()), (Some(0.0), 0));
        fake.write(file, text);
        second().await;
        assert_eq!((cpu.sample(), cpu.faults()), (None, 1), "{file} {text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_at_all_says_nothing() {
    let fake = Fake::new("cpu_nothing");
    let (cpu, throttling) = (
        CpuSignal::of(fake.files()),
        ThrottlingSignal::of(fake.files()),
    );
    for n in 1..4 {
        assert_eq!((cpu.sample(), cpu.faults()), (None, n));
        assert_eq!((throttling.sample(), throttling.faults()), (None, n));
        second().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_held_back_shows() {
    let fake = Fake::new("throttling");
    fake.write("proc/self/cgroup", "2:cpu:/app\n0::/app\n");
    let v2 = |usec: u64| format!("usage_usec 1\nnr_throttled 1\nthrottled_usec {usec}\n");
    fake.write("sys/fs/cgroup/app/cpu.stat", v2(0));
    fake.write("sys/fs/cgroup/cpu.stat", "usage_usec 1\n");
    let throttling = ThrottlingSignal::of(fake.files());
    throttling.sample();
    second().await;
    fake.write("sys/fs/cgroup/app/cpu.stat", v2(500_000));
    assert_eq!(throttling.sample(), Some(0.5));

    // The same from v1, in nanoseconds.
    fake.write("sys/fs/cgroup/app/cpu.stat", "usage_usec 1\n");
    let v1 = |nanos: u64| format!("nr_periods 3\nnr_throttled 1\nthrottled_time {nanos}\n");
    for (nanos, share) in [(0, None), (2_000_000_000, Some(2.0))] {
        fake.write("sys/fs/cgroup/cpu/app/cpu.stat", v1(nanos));
        second().await;
        assert_eq!(throttling.sample(), share);
    }
    assert_eq!(
        (throttling.faults(), throttling.name()),
        (1, "cpu_throttling")
    );
}

#[tokio::test]
async fn work_on_this_machine_shows() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let cpu = CpuSignal::new();
    cpu.sample();
    let start = clock::now();
    while start.elapsed() < Duration::from_millis(150) {
        std::hint::spin_loop();
    }
    let share = cpu.sample().expect("this machine tells");
    // One thread was busy on one of so many cores, unless others took its turn.
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(share > 0.1 / cores, "{share} of {cores} cores");
}

#[test]
#[should_panic(expected = "cannot run on -1 cores")]
fn less_than_no_core_is_refused() {
    let _ = CpuSignal::new().cores(-1.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_files_hold_it_is_a_share_or_nothing(
        texts in proptest::collection::vec(("0::/a?|[ -~]{0,9}", "usage_usec [0-9]{0,20}|[ -~]{0,30}", "max 1|[0-9]{0,6} [0-9]{0,6}|[ -~]{0,9}"), 1..5),
    ) {
        let paused = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let fake = Fake::new("cpu_proptest");
        paused.block_on(async {
            let cpu = CpuSignal::of(fake.files());
            for (group, stat, max) in texts {
                fake.write("proc/self/cgroup", group);
                fake.write("sys/fs/cgroup/cpu.stat", stat);
                fake.write("sys/fs/cgroup/a/cpu.max", &max);
                fake.write("sys/fs/cgroup/cpu.max", max);
                second().await;
                if let Some(share) = cpu.sample() {
                    assert!(share.is_finite() && share >= 0.0, "{share}");
                }
            }
        });
    }
}
