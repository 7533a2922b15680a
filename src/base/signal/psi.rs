use std::path::PathBuf;

use super::Signal;
use super::cpu::{Files, psi_total};
use super::meter::{Meter, grown};

/// The share of time in which somebody waited for a core, for memory or for a disk: the kernel's pressure stall
/// information, its `some` line.
///
/// It is read from the process's control group where there is one, and covers that group then, its throttling
/// included; else it is the whole machine's, which knows nothing of a quota. The kernel's own averages move every two
/// seconds; the signal uses its running total, averaged as with [`CpuSignal`](super::CpuSignal). Without pressure
/// information it says nothing.
///
/// ```
/// use tower_flow::signal::{Pressure, Pressures, PsiSignal};
///
/// let pressures = Pressures::new([
///     Pressure::new(PsiSignal::cpu()).warn(0.2).critical(0.8),
///     Pressure::new(PsiSignal::memory()).warn(0.05).critical(0.3),
/// ]);
/// # let _ = pressures;
/// ```
#[derive(Debug)]
pub struct PsiSignal {
    name: &'static str,
    resource: &'static str,
    files: Files,
    meter: Meter<(PathBuf, u64)>,
}

// ===== impl PsiSignal =====

impl PsiSignal {
    /// Waiting for a core; called `psi_cpu`.
    pub fn cpu() -> Self {
        Self::of("psi_cpu", "cpu", Files::system())
    }

    /// Waiting for memory: reclaim, swap, thrashing; called `psi_memory`.
    pub fn memory() -> Self {
        Self::of("psi_memory", "memory", Files::system())
    }

    /// Waiting for a disk; called `psi_io`.
    pub fn io() -> Self {
        Self::of("psi_io", "io", Files::system())
    }

    fn of(name: &'static str, resource: &'static str, files: Files) -> Self {
        Self {
            name,
            resource,
            files,
            meter: Meter::smooth(),
        }
    }

    /// How many readings were of no use: a file missing, garbage, or a total that went back.
    pub fn faults(&self) -> u64 {
        self.meter.faults()
    }
}

impl Signal for PsiSignal {
    fn name(&self) -> &str {
        self.name
    }

    fn sample(&self) -> Option<f64> {
        self.meter.sample(
            || {
                let (file, text) = self.files.pressure(self.resource)?;
                Some((file, psi_total(&text)?))
            },
            |before, now, elapsed| {
                let micros = (before.0 == now.0).then(|| grown(before.1, now.1))??;
                Some(micros / (elapsed.as_secs_f64() * 1e6))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::signal::cpu::Fake;

    fn text(total: impl std::fmt::Display) -> String {
        format!(
            "some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_group_goes_before_the_machine() {
        let fake = Fake::new("psi_group");
        fake.write("proc/self/cgroup", "0::/pod/app\n");
        fake.write("proc/pressure/memory", text(0));
        fake.write("sys/fs/cgroup/pod/memory.pressure", text(1_000_000));
        let psi = PsiSignal::of("psi_memory", "memory", fake.files());
        assert_eq!(psi.sample(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        fake.write("sys/fs/cgroup/pod/memory.pressure", text(1_250_000));
        assert_eq!((psi.sample(), psi.name()), (Some(0.25), "psi_memory"));
        // Another file is another total.
        tokio::time::advance(Duration::from_secs(1)).await;
        fake.write("sys/fs/cgroup/pod/app/memory.pressure", text(1_500_000));
        assert_eq!((psi.sample(), psi.faults()), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn without_pressure_information_it_says_nothing() {
        let fake = Fake::new("psi_none");
        let psi = PsiSignal::of("psi_io", "io", fake.files());
        for text in [
            "",
            "some",
            "some total=-1\n",
            &text("x"),
            &text(1_u128 << 64),
            "\0\u{fffd}",
        ] {
            assert_eq!(psi.sample(), None);
            tokio::time::advance(Duration::from_secs(1)).await;
            fake.write("proc/pressure/io", text);
        }
        assert_eq!((psi.sample(), psi.faults()), (None, 7));
        fake.write("proc/pressure/io", text(5));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(psi.sample(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        fake.write("proc/pressure/io", text(4));
        assert_eq!((psi.sample(), psi.faults()), (None, 8));
    }

    #[tokio::test]
    async fn this_machine_never_reads_as_nonsense() {
        for psi in [PsiSignal::cpu(), PsiSignal::memory(), PsiSignal::io()] {
            psi.sample();
            assert!(psi.sample().is_none_or(|share| share >= 0.0));
        }
    }
}
