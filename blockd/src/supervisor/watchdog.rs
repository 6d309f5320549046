//! The watchdog: the service manager restarts a daemon that no longer says that it is alive.
//!
//! It is said only after each part has shown so: the caller's own task runs, the thread pool takes and finishes a task, and the front end that
//! is given has answered. A disk or a peer that hangs is no reason: a restart cures neither, and takes the disks of all other VMs away. So
//! probes never wait for either.

use sd_notify::NotifyState;
use std::time::Duration;

/// Asks a part for a sign of life; completes when it has given one.
pub trait Probe {
    /// What it is called in the log.
    fn name(&self) -> &'static str;
    /// Completes once the part has answered; never, if it does not live.
    fn answer(&self) -> impl Future<Output = ()> + Send;
}

/// The runtime's threads take work and finish it.
struct ThreadPool;

impl Probe for ThreadPool {
    fn name(&self) -> &'static str {
        "the thread pool"
    }

    async fn answer(&self) {
        let _ = tokio::spawn(async {}).await;
    }
}

/// Runs for ever; does nothing where nobody watches.
pub async fn keep_alive(front_end: &impl Probe) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // Twice within the limit, as sd_watchdog_enabled(3) advises; both parts together answer within one period.
    let period = limit / 2;
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        if lives(&ThreadPool, period / 2).await && lives(front_end, period / 2).await {
            super::tell(NotifyState::Watchdog);
        }
    }
}

/// Whether the part answers in time; logs it if not.
async fn lives(probe: &impl Probe, within: Duration) -> bool {
    let answered = tokio::time::timeout(within, probe.answer()).await.is_ok();
    if !answered {
        tracing::error!(part = probe.name(), ?within, "no sign of life: the service manager will restart blockd");
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dead;

    impl Probe for Dead {
        fn name(&self) -> &'static str {
            "a thread that hangs"
        }

        async fn answer(&self) {
            std::future::pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_answer_is_found_out_and_one_that_does_is_not() {
        assert!(lives(&ThreadPool, Duration::from_secs(1)).await);
        assert!(!lives(&Dead, Duration::from_secs(1)).await);
    }
}
