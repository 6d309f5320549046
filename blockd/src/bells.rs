//! Whom to call when something changes: front ends that cannot await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Ring = Box<dyn Fn() + Send>;

/// Bells that ring together. Clones are the same bells.
#[derive(Clone, Default)]
pub struct Bells(Arc<Mutex<Hung>>);

#[derive(Default)]
struct Hung {
    last_id: u64,
    bells: Vec<(u64, Ring)>,
}

/// Takes its bell down when it is dropped: the bell does not ring after that.
#[must_use = "a bell is taken down with its rope"]
pub struct Rope {
    bells: Bells,
    id: u64,
}

impl Bells {
    /// Hangs a bell. It must not wait for anything, and not touch the bells.
    pub fn add(&self, ring: impl Fn() + Send + 'static) -> Rope {
        let mut hung = self.lock();
        hung.last_id += 1;
        let id = hung.last_id;
        hung.bells.push((id, Box::new(ring)));
        Rope { bells: self.clone(), id }
    }

    /// Rings all.
    pub fn ring(&self) {
        self.lock().bells.iter().for_each(|(_, ring)| ring());
    }

    fn lock(&self) -> MutexGuard<'_, Hung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Bells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bells").finish_non_exhaustive()
    }
}

impl Drop for Rope {
    fn drop(&mut self) {
        self.bells.lock().bells.retain(|(id, _)| *id != self.id);
    }
}
