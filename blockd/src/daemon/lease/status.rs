//! What the operator sees of leases.

use crate::catalogue::PeerRecord;
use crate::daemon::part::PrimaryPart;
use crate::daemon::status::seconds;
use crate::daemon::volumes::OpenVolume;
use blockd_api::{LeaseStatus, State, VolumeStatus};
use replicator::site_link::lease::LeaseTerms;
use replicator_engine::lease::{Refusal, Stage};

fn of_terms(terms: &LeaseTerms) -> LeaseStatus {
    LeaseStatus {
        seconds: seconds(terms.lease_ms),
        left_seconds: None,
        standby_grants: None,
        witness: terms.witness.as_ref().map(|witness| witness.name.clone()),
        witness_grants: None,
        auto_promote_seconds: terms.auto_promote_ms.map(seconds),
        ready: None,
        standing: false,
    }
}

pub fn of_primary(status: &mut VolumeStatus, open: &OpenVolume, part: &PrimaryPart, peer: &PeerRecord) {
    let (Some(terms), Some(keeper)) = (&peer.lease, &part.lease) else { return };
    let (seen, held) = (keeper.seen(), open.volume.intake.held());
    let left_ms = held.lease().left_ms().unwrap_or(0);
    status.lease = Some(LeaseStatus {
        left_seconds: Some(seconds(left_ms)),
        standby_grants: Some(seen.standby_grants),
        witness_grants: terms.witness.is_some().then_some(seen.witness_grants),
        ready: terms.auto_promote_ms.is_some().then_some(seen.told_held && seen.witness_grants),
        ..of_terms(terms)
    });
    if left_ms == 0 {
        status.state = State::Suspended;
        let whom = terms.witness.as_ref().map_or(String::new(), |witness| format!(" nor the witness {}", witness.name));
        let why = if seen.refused { "one of them has refused: the standby may be promoted" } else { "they do not answer" };
        status.last_error = Some(format!(
            "no lease: neither the standby {}{whom} grants one ({why}); requests wait; if the standby is not promoted, `tern replicate --fence \
             none --force` goes on without",
            peer.name
        ));
    }
}

pub fn of_standby(status: &mut VolumeStatus, open: &OpenVolume) {
    let Some(terms) = open.grants.terms(&open.record.id) else { return };
    let stage = open.grants.stage(&open.record.id).unwrap_or(Stage::Following);
    status.lease = Some(LeaseStatus { standing: stage != Stage::Following, ..of_terms(&terms) });
    match stage {
        Stage::Following => {}
        Stage::Agreed => status.state = State::Promoting,
        Stage::Standing(why) => {
            let why = waits_for(why, &terms);
            status.last_error = Some(format!("the primary is silent, and this standby not promoted: {why}"));
        }
    }
}

fn waits_for(why: Option<Refusal>, terms: &LeaseTerms) -> String {
    let witness = terms.witness.as_ref().map_or("", |witness| witness.name.as_str());
    match why {
        None => format!("the witness {witness} has not answered yet"),
        Some(Refusal::Later(_)) => format!("the witness {witness} hears the primary, or heard it just now"),
        Some(Refusal::PromiseBroken) => "the primary acknowledged more than this site has; `tern promote --force` accepts that loss".into(),
        Some(Refusal::NotAutomatic) => format!("the witness {witness} was not asked for it by the primary"),
        Some(Refusal::OtherGeneration(_)) => format!("the witness {witness} knows another generation"),
        Some(Refusal::OldTerm) => format!("the witness {witness} knows that it withdrew"),
    }
}
