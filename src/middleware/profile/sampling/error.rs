//! Why there is no profile.

use std::fmt;
use std::io;
use std::time::Duration;

use super::{LONGEST, RATES};

/// Why a [`Profiler`](super::Profiler) did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProfilerError {
    /// Another one runs; there is one at a time in a process.
    Busy,
    /// So many samples a second cannot be had.
    Rate(u32),
    /// A profile cannot be that long, or that short.
    Length(Duration),
    /// The kernel does not allow it.
    Denied {
        /// What `perf_event_open` failed with.
        error: io::Error,
        /// The kernel's setting `perf_event_paranoid`, where it could be read.
        paranoid: Option<i32>,
    },
    /// This build, or this system, has no such profiler.
    Unsupported,
    /// What else can go wrong: no thread, no file descriptor, no memory for a ring.
    Io {
        /// What was tried.
        what: &'static str,
        /// What happened.
        error: io::Error,
    },
    /// The profiler's own thread panicked.
    Panicked,
}

impl ProfilerError {
    /// Sorts what opening an event failed with.
    #[cfg_attr(not(all(feature = "perf", target_os = "linux")), allow(dead_code))]
    pub(super) fn opening(error: io::Error, paranoid: Option<i32>) -> Self {
        use io::ErrorKind::{NotFound, PermissionDenied, Unsupported};
        match error.kind() {
            // Not found is the clock, as an event.
            PermissionDenied | Unsupported | NotFound => Self::Denied { error, paranoid },
            _ => Self::Io {
                what: "opening a perf event",
                error,
            },
        }
    }
}

impl fmt::Display for ProfilerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str(
                "a profiler already runs in this process; wait for its end, 60 s at most, or stop it",
            ),
            Self::Rate(hz) => write!(
                f,
                "{hz} samples a second of {}..={}; 99 is plenty for most",
                RATES.start(),
                RATES.end(),
            ),
            Self::Length(length) => write!(
                f,
                "a profile of {} s; ask for more than 0 s and at most {} s",
                length.as_secs_f64(),
                LONGEST.as_secs(),
            ),
            Self::Denied { error, paranoid } => {
                write!(f, "the kernel denied perf_event_open ({error}): ")?;
                match paranoid {
                    Some(paranoid @ 3..) => write!(
                        f,
                        "kernel.perf_event_paranoid is {paranoid}; set it to 2 or lower, or give the process CAP_PERFMON"
                    ),
                    Some(paranoid) => write!(
                        f,
                        "kernel.perf_event_paranoid is {paranoid}, which would allow it, so a seccomp filter or a security \
                         module forbids it; allow perf_event_open in the container's seccomp profile"
                    ),
                    None => f.write_str(
                        "there is no kernel.perf_event_paranoid, so this kernel or sandbox has no perf events; profile on \
                         one that has",
                    ),
                }
            }
            Self::Unsupported => {
                f.write_str("the sampling profiler needs Linux and its perf events; run it there")
            }
            Self::Io { what, error } => write!(
                f,
                "{what} failed ({error}); see the limits on threads, open files and locked memory"
            ),
            Self::Panicked => {
                f.write_str("the profiler's thread panicked; its message is on standard error")
            }
        }
    }
}

impl std::error::Error for ProfilerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Denied { error, .. } | Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_and_what_to_do() {
        let said = |code, paranoid| {
            ProfilerError::opening(io::Error::from_raw_os_error(code), paranoid).to_string()
        };
        let strict = said(13, Some(3));
        assert!(
            strict.contains("perf_event_paranoid is 3; set it to 2"),
            "{strict}"
        );
        let filtered = said(1, Some(2));
        assert!(
            filtered.contains("is 2, which would allow it"),
            "{filtered}"
        );
        assert!(filtered.contains("seccomp profile"), "{filtered}");
        let absent = said(38, None);
        assert!(absent.contains("no perf events"), "{absent}");
        let files = said(24, Some(2));
        assert!(files.contains("limits on threads, open files"), "{files}");
        assert_eq!(
            ProfilerError::Rate(5_000).to_string(),
            "5000 samples a second of 1..=999; 99 is plenty for most"
        );
        assert_eq!(
            ProfilerError::Length(Duration::from_secs(61)).to_string(),
            "a profile of 61 s; ask for more than 0 s and at most 60 s"
        );
    }
}
