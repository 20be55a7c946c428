// SPDX-License-Identifier: GPL-2.0

//! Clocks.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time by the kernel's own undisturbed clock, since some moment before.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::MonotonicRaw);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

/// What a function returned, and how long it took.
pub fn timed<T>(function: impl FnOnce() -> T) -> (T, Duration) {
    let start = now();
    let value = function();
    (value, now() - start)
}

/// What a function returned, and how many microseconds it took.
pub fn timed_micros<T>(function: impl FnOnce() -> T) -> (T, u64) {
    let (value, time) = timed(function);
    (value, time.as_micros().try_into().unwrap_or(u64::MAX))
}
