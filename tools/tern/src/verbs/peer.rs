//! `tern peer …`

use super::Context;
use crate::{
    cli::PeerVerb,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{ApiError, Done, ErrorCode, Invite, InvitePeer, JoinPeer, Peer, PeerList, routes};
use std::io::Read;

/// Longest token that is read from standard input.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// Runs the verb.
pub async fn run(context: &Context<'_>, verb: PeerVerb) -> Result<Report, ApiError> {
    let (client, format) = (context.client, context.format);
    match verb {
        PeerVerb::Invite { address, ttl } => {
            let document = client.post(routes::PEER_INVITE, &InvitePeer { address, ttl }).await?;
            Report::of(document, format, |invite: Invite| format!("{}\n", invite.token))
        }
        PeerVerb::Join { token, address } => {
            let token = if token == "-" { token_of(std::io::stdin())? } else { token };
            let document = client.post(routes::PEER_JOIN, &JoinPeer { token, address }).await?;
            Report::of(document, format, |peer: Peer| format!("paired with {} ({})", peer.name, peer.id))
        }
        PeerVerb::List => Report::of(client.get(routes::PEERS).await?, format, table),
        PeerVerb::Remove { site } => {
            let document = client.post(&routes::remove_peer(&site), &Done {}).await?;
            Report::of(document, format, |Done {}| format!("{site} is forgotten"))
        }
    }
}

fn token_of(input: impl Read) -> Result<String, ApiError> {
    let unreadable = |error| ApiError::new(ErrorCode::Io, format!("cannot read the token from standard input: {error}"));
    let mut text = String::new();
    input.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text.trim().to_owned())
}

fn table(list: PeerList) -> String {
    if list.peers.is_empty() {
        return "no peers yet: run `tern peer invite` at one site and `tern peer join TOKEN` at the other".to_owned();
    }
    let columns = [("SITE", Align::Left), ("ADDRESS", Align::Left), ("CONNECTED", Align::Left), ("RTT", Align::Right), ("ID", Align::Left)];
    let mut table = Table::new(&columns);
    for peer in list.peers {
        let connected = if peer.connected { "yes" } else { "no" };
        let rtt = peer.rtt_ms.map_or_else(|| "-".to_owned(), |rtt_ms| format!("{rtt_ms:.1} ms"));
        let address = peer.address.unwrap_or_else(|| "-".to_owned());
        table.row([peer.name.to_string(), address, connected.to_owned(), rtt, peer.id]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_token_may_have_a_newline() {
        assert_eq!(token_of(&b"  tern1abc \n"[..]).unwrap(), "tern1abc");
        assert_eq!(token_of(&b"\xff"[..]).unwrap_err().code, ErrorCode::Io);
    }
}
