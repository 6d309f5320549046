//! What this site grants to the primaries of other sites, as their standby or as their witness.

use crate::catalogue::RocksCatalogue;
use replicator::catalogue::{Catalogue, Persist};
use replicator::clock::unix_ms;
use replicator::intake::boot_ms;
use replicator::site_link::lease::{LeaseRecord, LeaseRequest, LeaseTerms};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::lease::{Answer, Candidacy, Refusal, Stage, Standby, Step, Verdict};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PREFIX: &[u8] = b"lease/";
/// Volumes that are granted leases at most.
const MAX_VOLUMES: usize = 10_000;

/// What a site is to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It has volumes of its own, and standbys.
    Data,
    /// It has neither.
    Witness,
}

/// One volume.
struct Granting {
    standby: Standby,
    primary: String,
    terms: LeaseTerms,
    /// What is known to be on disk.
    written: Option<LeaseRecord>,
    /// A step is being taken.
    busy: bool,
    /// This site is being promoted.
    closed: bool,
}

/// See the module's documentation. Every call that decides something may block on the disk.
pub struct Grants {
    duty: Duty,
    catalogue: Arc<RocksCatalogue>,
    volumes: Mutex<BTreeMap<String, Granting>>,
}

fn key(volume: &str) -> Vec<u8> {
    [PREFIX, volume.as_bytes()].concat()
}

impl Grants {
    /// What is recorded goes on.
    pub fn open(catalogue: Arc<RocksCatalogue>, duty: Duty) -> io::Result<Self> {
        let mut volumes = BTreeMap::new();
        for (key, value) in catalogue.scan(PREFIX)? {
            let volume = String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned();
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: lease/{volume} cannot be read"));
            let record: LeaseRecord = serde_json::from_slice(&value).map_err(|_| damaged())?;
            let standby = Standby::new(Some(record.decoded().ok_or_else(damaged)?), record.terms.auto_promote_ms, boot_ms());
            let (primary, terms) = (record.primary.clone(), record.terms.clone());
            volumes.insert(volume, Granting { standby, primary, terms, written: Some(record), busy: false, closed: false });
        }
        Ok(Self { duty, catalogue, volumes: Mutex::new(volumes) })
    }

    /// What this site is.
    pub fn duty(&self) -> Duty {
        self.duty
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Granting>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A primary asks. The caller has made sure that this site is its standby or a witness.
    pub fn lease(&self, from: &str, asked: &LeaseRequest) -> Result<Answer, String> {
        let request = asked.decoded().ok_or("the question makes no sense: an improper volume, lineage or lease")?;
        let mut volumes = self.lock();
        if volumes.len() >= MAX_VOLUMES && !volumes.contains_key(&asked.volume) {
            return Err(format!("there are {MAX_VOLUMES} volumes already"));
        }
        let granting = volumes.entry(asked.volume.clone()).or_insert_with(|| Granting {
            standby: Standby::new(None, None, boot_ms()),
            primary: from.to_owned(),
            terms: asked.terms.clone(),
            written: None,
            busy: false,
            closed: false,
        });
        if granting.closed {
            return Ok(Answer::Yielded);
        }
        if granting.primary != from && granting.terms.standby != from {
            return Err("the volume is between other sites".into());
        }
        let verdict = granting.standby.decide(&request, boot_ms());
        if verdict.answer == Answer::Granted {
            (granting.primary, granting.terms) = (from.to_owned(), asked.terms.clone());
            granting.standby.set_auto_promote(asked.terms.auto_promote_ms);
        }
        self.settle(&asked.volume, granting, verdict).map_err(|error| error.to_string())
    }

    /// A candidate asks this witness.
    pub fn consent(&self, from: &str, volume: &str, lineage: &Lineage, candidacy: Candidacy) -> Result<Result<(), Refusal>, String> {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return Ok(Err(Refusal::NotAutomatic)) };
        if granting.terms.standby != from {
            return Err("that site is not the volume's standby".into());
        }
        let verdict = granting.standby.grantor().decide_consent(lineage, candidacy, boot_ms());
        self.settle(volume, granting, verdict).map_err(|error| error.to_string())
    }

    /// A candidate has withdrawn.
    pub fn withdrawn(&self, from: &str, volume: &str, term: u64) -> Result<(), String> {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume).filter(|granting| granting.terms.standby == from) else { return Ok(()) };
        let verdict = granting.standby.grantor().decide_release(term);
        self.settle(volume, granting, verdict).map_err(|error| error.to_string())
    }

    /// What to do next for a standby of this site.
    pub fn poll(&self, volume: &str) -> Option<Step> {
        let mut volumes = self.lock();
        let granting = volumes.get_mut(volume).filter(|granting| !granting.busy)?;
        granting.closed = false;
        let step = granting.standby.poll(boot_ms());
        granting.busy = step.is_some();
        step
    }

    /// The step is taken, well or not.
    pub fn taken(&self, volume: &str) {
        self.change(volume, |granting| granting.busy = false);
    }

    /// This site is no standby of the volume now.
    pub fn not_standby(&self, volume: &str) {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return };
        granting.standby.handle_not_standby(boot_ms());
        if let Some(verdict) = granting.standby.grantor().decide_run_out(boot_ms()) {
            // Or the next restart waits in vain.
            let _ = self.settle(volume, granting, verdict);
        }
    }

    fn change(&self, volume: &str, change: impl FnOnce(&mut Granting)) {
        if let Some(granting) = self.lock().get_mut(volume) {
            change(granting);
        }
    }

    /// Stands for promotion, to become this generation.
    pub fn stand(&self, volume: &str, generation: Id) -> io::Result<()> {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return Ok(()) };
        let Some(verdict) = granting.standby.decide_to_stand(generation, unix_ms(), boot_ms()) else { return Ok(()) };
        self.settle(volume, granting, verdict).map(drop)
    }

    /// Follows again.
    pub fn withdraw(&self, volume: &str) -> io::Result<()> {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return Ok(()) };
        let verdict = granting.standby.decide_to_withdraw();
        self.settle(volume, granting, verdict)
    }

    /// The witness knows that the term is withdrawn.
    pub fn released(&self, volume: &str, term: u64) -> io::Result<()> {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return Ok(()) };
        let verdict = granting.standby.decide_released(term);
        self.settle(volume, granting, verdict)
    }

    /// What the witness said; whether it agreed.
    pub fn answered(&self, volume: &str, candidacy: Candidacy, answer: Result<(), Refusal>) {
        self.change(volume, |granting| granting.standby.handle_consent(candidacy, answer));
    }

    /// What a primary and this site agreed upon.
    pub fn terms(&self, volume: &str) -> Option<LeaseTerms> {
        self.lock().get(volume).map(|granting| granting.terms.clone())
    }

    /// What this site knows of the primary's lineage.
    pub fn lineage(&self, volume: &str) -> Option<Lineage> {
        self.lock().get(volume)?.standby.lineage().cloned()
    }

    /// How far a standby has come.
    pub fn stage(&self, volume: &str) -> Option<Stage> {
        self.lock().get(volume).map(|granting| granting.standby.stage())
    }

    /// Grants nothing any more until this site is polled as a standby. When whatever was granted has run out, and the generation that this
    /// site stands to become, if it does.
    pub fn close(&self, volume: &str) -> (u64, Option<Id>) {
        let mut volumes = self.lock();
        let Some(granting) = volumes.get_mut(volume) else { return (0, None) };
        granting.closed = true;
        let grantor = granting.standby.grantor();
        let generation = grantor.record().and_then(|record| record.yielded).map(|candidacy| candidacy.generation);
        (grantor.until_ms(), generation)
    }

    /// The volume is gone.
    pub fn forget(&self, volume: &str) -> io::Result<()> {
        self.lock().remove(volume);
        self.catalogue.apply(&[(key(volume), None)], Persist::Synced)
    }

    /// Records what was decided, if that changes anything, then lets it count.
    fn settle<T>(&self, volume: &str, granting: &mut Granting, verdict: Verdict<T>) -> io::Result<T> {
        let record = verdict.record.as_ref().or(granting.standby.grantor().record());
        let wanted = record.map(|record| LeaseRecord::new(granting.primary.clone(), granting.terms.clone(), record));
        if let Some(wanted) = wanted.filter(|wanted| granting.written.as_ref() != Some(wanted)) {
            granting.written = None;
            let value = serde_json::to_vec(&wanted).map_err(io::Error::other)?;
            if let Err(error) = self.catalogue.apply(&[(key(volume), Some(value))], Persist::Synced) {
                granting.standby.handle_failed();
                tracing::error!(volume, %error, "lease: nothing is granted, because it cannot be recorded");
                return Err(error);
            }
            granting.written = Some(wanted);
        }
        Ok(granting.standby.accept(verdict))
    }
}
