//! What the system lets a process have.

/// As many open files as may be had: each connection is one, and the usual soft limit is meant for `select`.
pub(crate) fn raise() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        // Where it is not allowed, what there was stays.
        let _ = setrlimit(Resource::Nofile, files);
    }
}
