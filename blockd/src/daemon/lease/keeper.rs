//! Keeps a primary's lease: asks for it, and tells the volume until when it may acknowledge.

use crate::daemon::part::Overtaken;
use crate::volume::{GateState, Suspension, Volume};
use blockd_api::VolumeName;
use replicator::catalogue::{Catalogue, Persist};
use replicator::identity::SiteId;
use replicator::intake::boot_ms;
use replicator::primary::{PrimaryStatus, Told};
use replicator::site_link::lease::{LeaseRequest, LeaseTerms, answer_of};
use replicator::site_link::request::{self, Question, lineage_of, lineage_records};
use replicator::transport::Links;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::lease::{Answer, Ask, Holder, Party};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Numbers of requests that a run of the daemon may use.
const NUMBERS_A_RUN: u64 = 1 << 32;

/// What a primary needs to ask for leases.
pub struct KeeperSetup {
    pub name: VolumeName,
    pub volume: Arc<Volume>,
    pub id: Id,
    pub lineage: Lineage,
    pub terms: LeaseTerms,
    pub links: Arc<Links>,
    pub told: Arc<Told>,
    pub status: watch::Receiver<PrimaryStatus>,
    /// Whether the standby is as close as a mode has it in which no request waits for it.
    pub is_in_time: Box<dyn Fn(&PrimaryStatus) -> bool + Send>,
    pub overtaken: mpsc::UnboundedSender<Overtaken>,
    /// Requests are numbered from here on.
    pub first_number: u64,
    /// Nothing is acknowledged before, on the clock of leases.
    pub not_before_ms: u64,
}

/// Who grants at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseSeen {
    pub standby_grants: bool,
    pub witness_grants: bool,
    /// Somebody answered, and did not grant.
    pub refused: bool,
    /// The witness knows that the promise holds.
    pub told_held: bool,
}

/// See the module's documentation. Dropped, it stops: the lease runs out.
pub struct Keeper {
    volume: Arc<Volume>,
    task: JoinHandle<()>,
    /// The task runs on until it next waits: it must not say anything then.
    ended: Arc<Mutex<bool>>,
    seen: watch::Receiver<LeaseSeen>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.task.abort();
        // Completions go by the lease itself.
        self.volume.gate.resume(Suspension::Lease);
    }
}

impl Keeper {
    /// Begins to ask. Until there is an answer, nothing is acknowledged.
    pub fn start(setup: KeeperSetup) -> Self {
        setup.volume.intake.held().lease().set_until(0);
        setup.told.need(setup.terms.auto_promote_ms.is_some());
        let (publish, seen) = watch::channel(LeaseSeen::default());
        let volume = setup.volume.clone();
        volume.gate.suspend(Suspension::Lease);
        let ended = Arc::<Mutex<bool>>::default();
        Self { volume, task: tokio::spawn(keep(setup, publish, ended.clone())), ended, seen }
    }

    /// Who grants.
    pub fn seen(&self) -> LeaseSeen {
        *self.seen.borrow()
    }
}

/// Numbers for the requests of a run, of which none was used before.
pub fn first_number(catalogue: &dyn Catalogue, volume: Id) -> io::Result<u64> {
    let key = format!("lease-number/{volume}").into_bytes();
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: lease-number/{volume} cannot be read"));
    let last = match catalogue.get(&key)? {
        Some(value) => u64::from_le_bytes(value.try_into().map_err(|_| damaged())?),
        None => 0,
    };
    let first = last.checked_add(NUMBERS_A_RUN).ok_or_else(damaged)?;
    catalogue.apply(&[(key, Some(first.to_le_bytes().to_vec()))], Persist::Synced)?;
    Ok(first)
}

/// Asks one site. `None`: there is no answer that is one.
pub async fn ask(links: &Links, site: &str, question: &Question, patience: Duration) -> Option<request::Answer> {
    let site: SiteId = site.parse().ok()?;
    request::ask(links, &site, question, patience).await.inspect_err(|error| tracing::debug!(%site, %error, "lease: no answer")).ok()
}

type Answered = (Party, u64, Option<Answer>);

async fn ask_for_lease(links: Arc<Links>, site: String, party: Party, asked: LeaseRequest, patience: Duration) -> Answered {
    let number = asked.number;
    let answer = ask(&links, &site, &Question::Lease(asked), patience).await;
    if let Some(request::Answer::Refused { message, .. }) = &answer {
        tracing::warn!(%site, message, "lease: refused");
    }
    (party, number, answer.and_then(answer_of))
}

/// Tells the volume until when it may acknowledge, unless another one does by now.
fn obey(volume: &Volume, until_ms: u64, now_ms: u64, ended: &Mutex<bool>) -> bool {
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ended {
        volume.intake.held().lease().set_until(until_ms);
        if until_ms > now_ms {
            volume.gate.resume(Suspension::Lease);
        } else {
            volume.gate.suspend(Suspension::Lease);
        }
    }
    !*ended
}

async fn keep(setup: KeeperSetup, publish: watch::Sender<LeaseSeen>, ended: Arc<Mutex<bool>>) {
    let KeeperSetup { terms, links, told, volume, .. } = &setup;
    let parties: &[Party] = if terms.witness.is_some() { &[Party::Standby, Party::Witness] } else { &[Party::Standby] };
    let automatic = terms.auto_promote_ms.is_some();
    let mut holder = Holder::new(setup.lineage.clone(), terms.lease_ms, automatic, parties, setup.first_number);
    holder.wait_until(setup.not_before_ms);
    let patience = Duration::from_millis(holder.patience_ms());
    let mut asked = JoinSet::new();
    loop {
        let promised = told.is_held() && (setup.is_in_time)(&setup.status.borrow());
        holder.set_promised(promised, boot_ms());
        while let Some(Ask { to, request }) = holder.poll(boot_ms()) {
            let site = match (to, &terms.witness) {
                (Party::Witness, Some(witness)) => witness.site.clone(),
                _ => terms.standby.clone(),
            };
            asked.spawn(ask_for_lease(links.clone(), site, to, written(&setup, &request), patience));
        }
        let now_ms = boot_ms();
        let until_ms = holder.until_ms(now_ms);
        if !obey(volume, until_ms, now_ms, &ended) {
            return;
        }
        if holder.is_told_broken() {
            told.confirm();
        }
        let grants = |party| holder.granted_by_ms(party) > now_ms;
        let (standby_grants, witness_grants) = (grants(Party::Standby), grants(Party::Witness));
        let refused = parties.iter().any(|party| holder.is_refused_by(*party));
        publish.send_replace(LeaseSeen { standby_grants, witness_grants, refused, told_held: holder.is_told_held() });
        let wakes = [holder.next_ms(), Some(until_ms).filter(|until_ms| *until_ms > now_ms), Some(now_ms + terms.lease_ms)];
        let nap = Duration::from_millis(wakes.into_iter().flatten().min().unwrap_or(now_ms).saturating_sub(now_ms).max(1));
        tokio::select! {
            Some(Ok((party, number, answer))) = asked.join_next() => match answer {
                Some(answer) => {
                    if let Some(lineage) = holder.handle_answer(party, number, answer, boot_ms()) {
                        volume.gate.set(GateState::Fenced);
                        let _ = setup.overtaken.send(Overtaken { name: setup.name.clone(), lineage });
                        return;
                    }
                }
                None => holder.handle_lost(party, number),
            },
            () = told.changed() => {}
            () = tokio::time::sleep(nap) => {}
        }
    }
}

fn written(setup: &KeeperSetup, request: &replicator_engine::lease::Request) -> LeaseRequest {
    LeaseRequest {
        volume: setup.id.to_string(),
        lineage: lineage_records(&request.lineage),
        number: request.number,
        promised: request.promised,
        said: request.said,
        terms: setup.terms.clone(),
    }
}

/// Has a witness record that nobody is promoted by its word any more. Whether it did.
pub async fn end_automatic(links: &Links, catalogue: &dyn Catalogue, id: Id, record: &crate::catalogue::VolumeRecord) -> io::Result<bool> {
    let Some(old) = record.peer.as_ref().and_then(|peer| peer.lease.clone()) else { return Ok(true) };
    let (Some(witness), Some(_)) = (old.witness.clone(), old.auto_promote_ms) else { return Ok(true) };
    let Some(lineage) = lineage_of(&record.lineage) else { return Ok(false) };
    let number = first_number(catalogue, id)?;
    let (volume, lineage) = (id.to_string(), lineage_records(&lineage));
    let patience = Duration::from_millis(old.lease_ms);
    let terms = LeaseTerms { auto_promote_ms: None, ..old };
    let question = Question::Lease(LeaseRequest { volume, lineage, number, promised: false, said: number, terms });
    Ok(ask(links, &witness.site, &question, patience).await == Some(request::Answer::Leased))
}
