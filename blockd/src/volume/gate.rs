//! Who may pass to a volume's image, and who is still inside.
//!
//! A volume serves only while it is primary (or stands alone). Front ends enter for each request and leave when it completed; the
//! daemon shuts the gate, waits until the last one left, and knows then that the image stands still. Whoever replicates the volume suspends
//! the gate, whatever its state, while nothing may be begun because the standby is gone, or the lease.

use crate::bells::Bells;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use tokio::sync::Notify;

/// State of a [`Gate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GateState {
    /// Requests pass.
    Open,
    /// New requests wait; those inside complete as usual.
    Shut,
    /// New requests wait; those inside fail, because another site may be primary already.
    Fenced,
}

/// Why nothing may be begun, whatever the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Suspension {
    /// The standby does not have what the mode promises.
    Promise = 1,
    /// This primary has no lease.
    Lease = 2,
}

/// See the module's documentation.
pub struct Gate {
    state: AtomicU32,
    /// The reasons that hold.
    suspended: AtomicU8,
    inside: AtomicU64,
    changed: Notify,
    bells: Bells,
}

impl Gate {
    /// A gate in `state`.
    pub fn new(state: GateState) -> Self {
        Self {
            state: AtomicU32::new(state as u32),
            suspended: AtomicU8::new(0),
            inside: AtomicU64::new(0),
            changed: Notify::new(),
            bells: Bells::default(),
        }
    }

    /// The state now.
    pub fn state(&self) -> GateState {
        match self.state.load(SeqCst) {
            0 => GateState::Open,
            1 => GateState::Shut,
            _ => GateState::Fenced,
        }
    }

    /// Whether requests pass.
    pub fn is_open(&self) -> bool {
        self.state() == GateState::Open && self.suspended.load(SeqCst) == 0
    }

    /// Nothing passes from now on, and what is inside goes on as usual.
    pub fn suspend(&self, why: Suspension) {
        if self.suspended.fetch_or(why as u8, SeqCst) == 0 {
            self.tell();
        }
    }

    /// That is no reason any more: without another one the state alone decides.
    pub fn resume(&self, why: Suspension) {
        if self.suspended.fetch_and(!(why as u8), SeqCst) == why as u8 {
            self.tell();
        }
    }

    /// Changes the state and wakes whoever waits.
    pub fn set(&self, state: GateState) {
        self.state.store(state as u32, SeqCst);
        self.tell();
    }

    /// Shuts an open gate; says whether it is shut now, and not fenced.
    pub fn shut(&self) -> bool {
        let (open, shut) = (GateState::Open as u32, GateState::Shut as u32);
        match self.state.compare_exchange(open, shut, SeqCst, SeqCst) {
            Ok(_) => {
                self.tell();
                true
            }
            Err(now) => now == shut,
        }
    }

    /// Opens a gate that was shut; one that was fenced meanwhile stays so.
    pub fn reopen(&self) {
        let (shut, open) = (GateState::Shut as u32, GateState::Open as u32);
        if self.state.compare_exchange(shut, open, SeqCst, SeqCst).is_ok() {
            self.tell();
        }
    }

    fn tell(&self) {
        self.changed.notify_waiters();
        self.bells.ring();
    }

    /// Enters, if the gate is open.
    pub fn try_enter(&self) -> bool {
        self.inside.fetch_add(1, SeqCst);
        let open = self.is_open();
        if !open {
            self.leave();
        }
        open
    }

    /// Leaves, after [`Self::try_enter`] returned true. An error says that the request must not be acknowledged.
    pub fn exit(&self) -> io::Result<()> {
        let state = self.state();
        self.leave();
        if state == GateState::Fenced { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn leave(&self) {
        if self.inside.fetch_sub(1, SeqCst) == 1 && self.state() != GateState::Open {
            self.changed.notify_waiters();
        }
    }

    /// Returns when the gate is open.
    pub async fn opened(&self) {
        self.wait(|| self.is_open()).await;
    }

    /// Returns when nobody is inside. Shut the gate first.
    pub async fn drained(&self) {
        self.wait(|| self.inside.load(SeqCst) == 0).await;
    }

    async fn wait(&self, condition: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// What rings at each change of state.
    pub fn bells(&self) -> &Bells {
        &self.bells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_shut_gate_lets_out_and_not_in() {
        let gate = Arc::new(Gate::new(GateState::Open));
        assert!(gate.try_enter());
        gate.set(GateState::Shut);
        assert!(!gate.try_enter());
        let drained = tokio::spawn({
            let gate = gate.clone();
            async move { gate.drained().await }
        });
        assert!(gate.exit().is_ok());
        tokio::time::timeout(std::time::Duration::from_secs(5), drained).await.unwrap().unwrap();
    }

    #[test]
    fn a_suspended_gate_lets_nobody_in_whatever_becomes_of_its_state() {
        let gate = Gate::new(GateState::Open);
        assert!(gate.try_enter());
        gate.suspend(Suspension::Promise);
        gate.suspend(Suspension::Lease);
        assert!(gate.exit().is_ok() && !gate.try_enter());
        assert!(gate.shut());
        gate.reopen();
        assert!(!gate.try_enter());
        gate.resume(Suspension::Promise);
        assert!(!gate.try_enter());
        gate.resume(Suspension::Lease);
        assert!(gate.try_enter());
    }

    #[test]
    fn a_fenced_gate_acknowledges_nothing() {
        let gate = Gate::new(GateState::Open);
        assert!(gate.try_enter());
        gate.set(GateState::Fenced);
        gate.reopen();
        assert!(!gate.shut());
        assert!(gate.exit().is_err() && !gate.try_enter());
    }
}
