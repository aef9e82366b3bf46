//! Whoever holds an invitation spends it: one request, within TLS with our own key or within our onion service.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::Shared;
use super::invited::Redeemed;
use super::register::Peer;
use crate::code::{Code, Coded};
use crate::dial::Conn;
use crate::invitation::Token;
use crate::kite::Secret;
use crate::refusal;
use crate::wire::join::{Ask, MAX_BODY, Refusal, Reply, body_len, parse_ask, put_reply};

/// How long the request may take to come.
const PATIENCE: Duration = Duration::from_secs(20);
/// A secret with fewer bytes is none that kite has made.
const LEAST_SECRET: usize = 32;

/// Answers one request. `head` was read, and `body` begun.
pub(super) async fn serve<C: Conn>(
    shared: &Shared,
    mut conn: C,
    head: &[u8],
    body: BytesMut,
    peer: Peer<'_>,
) {
    let reading = read(&mut conn, head, body);
    let Ok(Some(ask)) = tokio::time::timeout(PATIENCE, reading).await else {
        tracing::debug!("what {peer} said with an invitation was not understood");
        refusal::say(&mut conn, crate::wire::handshake::UNAVAILABLE).await;
        return;
    };
    let reply = answer(shared, &ask, peer).await;
    drop(ask);
    refusal::say(&mut conn, &put_reply(&reply)).await;
}

async fn read<C: Conn>(conn: &mut C, head: &[u8], body: BytesMut) -> Option<Ask> {
    let length = body_len(head)?;
    let mut all = Zeroizing::new(Vec::with_capacity(MAX_BODY));
    all.extend_from_slice(body.get(..length.min(body.len()))?);
    let rest = (length - all.len()) as u64;
    conn.take(rest).read_to_end(&mut all).await.ok()?;
    (all.len() == length).then(|| parse_ask(&all))?
}

async fn answer(shared: &Shared, ask: &Ask, peer: Peer<'_>) -> Reply {
    let token = Token::read(&ask.token);
    let secret = Secret::new(ask.secret.as_bytes()).filter(|s| s.expose().len() >= LEAST_SECRET);
    let (Some(token), Some(secret)) = (token, secret) else {
        return wrong(shared, peer);
    };
    let (accounts, kite) = (shared.accounts.clone(), ask.kite.clone());
    // It waits for the disk. A right token waits for nobody's guesses: it is looked up first, which costs a wrong one no write.
    let redeemed =
        tokio::task::spawn_blocking(move || accounts.redeem(&token, &kite, &secret)).await;
    match redeemed {
        Ok(Ok(Redeemed::Kite { name, entry, again })) => {
            let before = if again { ", again" } else { "" };
            tracing::info!("{name} may fly from now on: {peer} took up the invitation{before}");
            Reply::Joined {
                protocols: entry.protocols.clone(),
            }
        }
        Ok(Ok(Redeemed::Refused { why, name })) => {
            match (&name, why) {
                (Some(name), Refusal::Used) => tracing::warn!(
                    "[{}] the invitation to fly {name} was used already, and {peer} came with it and another secret: two \
                     have read it. Ask its holder which of them flies the kite; `kite frontend kites remove {name}` \
                     takes it from both",
                    Code::InvitationReadTwice
                ),
                (Some(name), why) => {
                    tracing::info!("the invitation to fly {name} was refused to {peer}: {why}");
                }
                (None, Refusal::Unknown) => return wrong(shared, peer),
                (None, _) => {}
            }
            Reply::Refused(why)
        }
        Ok(Err(e)) => {
            tracing::error!("[{}] an invitation cannot be redeemed: {e}", e.code());
            Reply::Refused(Refusal::Trouble)
        }
        Err(_) => Reply::Refused(Refusal::Trouble),
    }
}

/// The answer to a guess. Who makes many hears that he is to wait, and no more.
fn wrong(shared: &Shared, peer: Peer<'_>) -> Reply {
    if !shared.judge.may_try_invitation(peer.known) {
        return Reply::Refused(Refusal::Busy);
    }
    if shared.judge.wrong_invitation(peer.known) {
        tracing::info!("{peer} came with an invitation that is none of ours");
    }
    Reply::Refused(Refusal::Unknown)
}
