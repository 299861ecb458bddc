//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// `first`, doubled `times` times, and at most `most`.
pub(crate) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(most)
}

/// A random part of `most`: callers that failed together do not come back together ("full jitter",
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
pub(crate) fn jittered(most: Duration) -> Duration {
    most.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(10));
        let pauses = [0, 1, 4, 5, 31, 32, u32::MAX].map(|times| doubled(first, times, most));
        assert_eq!(
            pauses.map(|pause| pause.as_millis()),
            [500, 1000, 8000, 10_000, 10_000, 10_000, 10_000]
        );
        assert!(jittered(most) <= most);
        assert_eq!(doubled(Duration::MAX, 3, Duration::MAX), Duration::MAX);
    }
}
