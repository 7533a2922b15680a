//! What the kernel writes into `/proc` and `/sys/fs/cgroup`, taken as data nobody vouches for: pure, and never a panic.

/// What is there, but makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Garbage;

/// The path of the process's group in the hierarchy of `controller`, the empty name for cgroup v2's, from
/// `/proc/self/cgroup`. A path that leads out of what is visible is the root.
pub(super) fn group<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    let path = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        names
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    })?;
    let inside = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    Some(if inside { path } else { "/" })
}

/// How many cores `cpu.max` allows; `None` for as many as there are.
pub(super) fn quota_v2(text: &str) -> Result<Option<f64>, Garbage> {
    let mut parts = text.split_whitespace();
    let (quota, period) = (parts.next().ok_or(Garbage)?, parts.next().ok_or(Garbage)?);
    match quota {
        "max" => Ok(None),
        quota => cores(number(quota)?, number(period)?),
    }
}

/// How many cores `cpu.cfs_quota_us` and `cpu.cfs_period_us` allow; `None` for as many as there are.
pub(super) fn quota_v1(quota: &str, period: &str) -> Result<Option<f64>, Garbage> {
    match quota.trim() {
        "-1" => Ok(None),
        quota => cores(number(quota)?, number(period)?),
    }
}

fn cores(quota: u64, period: u64) -> Result<Option<f64>, Garbage> {
    if quota == 0 || period == 0 {
        return Err(Garbage);
    }
    Ok(Some(quota as f64 / period as f64))
}

/// The one number in a file.
pub(super) fn number(text: &str) -> Result<u64, Garbage> {
    text.trim().parse().map_err(|_| Garbage)
}

/// The number after `key` in a file of keys and numbers; `None` without such a key.
pub(super) fn keyed(text: &str, key: &str) -> Result<Option<u64>, Garbage> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .map(number)
        .transpose()
}

/// The microseconds in which some task waited, from a file of `/proc/pressure`.
pub(in crate::base::signal) fn psi_total(text: &str) -> Option<u64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some
        .split_whitespace()
        .find_map(|part| part.strip_prefix("total="))?;
    total.parse().ok()
}

/// The clock ticks the process has computed, from `/proc/self/stat`.
pub(super) fn ticks(text: &str) -> Result<u64, Garbage> {
    // The second field is the program's name, in which anything may stand.
    let (_, fields) = text.rsplit_once(')').ok_or(Garbage)?;
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || times.next().ok_or(Garbage).and_then(number);
    next()?.checked_add(next()?).ok_or(Garbage)
}

/// How many cores the process may run on, from `/proc/self/status`.
pub(super) fn allowed(text: &str) -> Result<u64, Garbage> {
    let list = text
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .ok_or(Garbage)?;
    list.trim().split(',').try_fold(0u64, |cores, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let span = number(last)?.checked_sub(number(first)?);
        span.and_then(|span| span.checked_add(1))
            .and_then(|span| span.checked_add(cores))
            .ok_or(Garbage)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_group_is_found_by_its_controller() {
        let text =
            "4:memory:/m\n2:cpu,cpuacct:/kube pods/a:b\n1:name=systemd:/s\n0::/user.slice/x\n";
        assert_eq!(group(text, ""), Some("/user.slice/x"));
        assert_eq!(group(text, "cpuacct"), Some("/kube pods/a:b"));
        assert_eq!(group(text, "cpus"), None);
        assert_eq!(group("0::/../../elsewhere", ""), Some("/"));
        assert_eq!(group("0::relative", ""), Some("/"));
        assert_eq!(group("0:", ""), None);
    }

    #[test]
    fn quotas_are_cores() {
        assert_eq!(quota_v2("max 100000\n"), Ok(None));
        assert_eq!(quota_v2("150000 100000\n"), Ok(Some(1.5)));
        assert_eq!(quota_v1("-1\n", "100000\n"), Ok(None));
        assert_eq!(quota_v1("50000\n", "100000\n"), Ok(Some(0.5)));
        for garbage in [
            "",
            "max",
            "150000",
            "0 100000",
            "1 0",
            "-1 100000",
            "1e5 1e5",
            "NaN 1",
            "99999999999999999999 1",
        ] {
            assert_eq!(quota_v2(garbage), Err(Garbage), "{garbage}");
        }
        for garbage in [("", "1"), ("-2", "1"), ("1", ""), ("0", "1"), ("1", "0")] {
            assert_eq!(quota_v1(garbage.0, garbage.1), Err(Garbage), "{garbage:?}");
        }
    }

    #[test]
    fn a_key_is_a_whole_word() {
        let text = "usage_usec_more 1\nusage_usec 7\nnr_periods\n";
        assert_eq!(keyed(text, "usage_usec"), Ok(Some(7)));
        assert_eq!(keyed(text, "nr_periods"), Ok(None));
        assert_eq!(keyed("usage_usec seven", "usage_usec"), Err(Garbage));
    }

    #[test]
    fn psi_is_the_total_of_some() {
        let text = "some avg10=0.14 avg60=0.23 avg300=0.20 total=3663945\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(psi_total(text), Some(3_663_945));
        assert_eq!(psi_total("full avg10=0.00 total=9"), None);
        assert_eq!(psi_total("some avg10=0.14 avg60=0.2"), None);
    }

    #[test]
    fn ticks_stand_behind_whatever_name() {
        let text = "42 (a) b (c) 1 2) S 1 42 42 0 -1 4194560 156 0 0 0 250 17 0 0 20 0 1 0 9 8 7";
        assert_eq!(ticks(text), Ok(267));
        assert_eq!(
            ticks("42 (a) S 1 42 42 0 -1 4194560 156 0 0 0 250"),
            Err(Garbage)
        );
        assert_eq!(ticks("42 a"), Err(Garbage));
    }

    #[test]
    fn allowed_cores_are_counted() {
        let of = |list: &str| {
            allowed(&format!(
                "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\n"
            ))
        };
        assert_eq!((of("0-3,7"), of("5")), (Ok(5), Ok(1)));
        for garbage in ["", "3-1", "a-b", "0-", "0-18446744073709551615", "1,,2"] {
            assert_eq!(of(garbage), Err(Garbage), "{garbage}");
        }
        assert_eq!(allowed("Name:\tx\n"), Err(Garbage));
    }

    /// Any text, and such text as the kernel might have written.
    fn text() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            "[ -~]{0,8}",
            any::<i128>().prop_map(|n| n.to_string()),
            "some |total=|usage_usec |max |Cpus_allowed_list:|0::/|0-|\\(x\\) |\n| |,|-",
        ];
        proptest::collection::vec(word, 0..20).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn no_text_panics(text in text(), other in any::<String>(), key in "[a-z]{0,3}") {
            for text in [&text, &other] {
                let _ = (group(text, &key), quota_v2(text), quota_v1(text, &other), number(text));
                let _ = (keyed(text, &key), psi_total(text), ticks(text), allowed(text));
            }
        }

        #[test]
        fn a_quota_is_a_positive_number(text in "-?[0-9]{0,21} [0-9]{0,21}", period in "[0-9]{0,21}") {
            for quota in [quota_v2(&text), quota_v1(&text, &period)] {
                if let Ok(Some(cores)) = quota {
                    prop_assert!(cores.is_finite() && cores > 0.0, "{}", cores);
                }
            }
        }

        #[test]
        fn what_the_kernel_writes_is_read_back(quota in 1u64.., period in 1u64.., usage in any::<u64>()) {
            prop_assert_eq!(quota_v2(&format!("{quota} {period}\n")), Ok(Some(quota as f64 / period as f64)));
            prop_assert_eq!(quota_v1(&format!("{quota}\n"), &format!("{period}\n")), Ok(Some(quota as f64 / period as f64)));
            prop_assert_eq!(keyed(&format!("user_usec 1\nusage_usec {usage}\n"), "usage_usec"), Ok(Some(usage)));
            prop_assert_eq!(psi_total(&format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={usage}\n")), Some(usage));
        }
    }
}
