//! Invitations, with real sockets: spent once, by a backend that has the frontend's key before it, and told from
//! guesses.

use std::time::Duration;

use kite::backend::join::{JoinError, ask_frontend};
use kite::clock::now_unix;
use kite::config::{Grant, ProofRule};
use kite::frontend::book::{Book, Entry};
use kite::frontend::invited::Invited;
use kite::frontend::kites::{Answer, Order};
use kite::frontend::limits::Limits;
use kite::invitation::{Invitation, Token, new_secret};
use kite::kite::{Protocol, Secret};
use kite::wire::join::{Ask, Refusal, Reply, put_ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::roles::{self, Side, any, dialer, frontend_config, kites, origin, service, until};

const DAVE: &str = "dave.other.example";

fn start(state: &std::path::Path) -> Side {
    roles::start(frontend_config(
        state,
        any(),
        &[Protocol::Http],
        ProofRule::Optional,
    ))
}

pub async fn invite(front: &Side, name: &str) -> Invitation {
    let token = Token::new();
    let entry = Entry::new(&Grant {
        pattern: name.parse().unwrap(),
        protocols: [Protocol::Http].into(),
        secret: new_secret().unwrap(),
        proof: ProofRule::Required,
        limits: Limits::default(),
        expires: None,
        backends: 1,
    });
    let name = name.parse().unwrap();
    let invited = Invited::new(&name, &token, entry, now_unix() + 60);
    let order = Order::Invite {
        id: token.id(),
        invited: Box::new(invited),
    };
    assert!(matches!(front.handle.kites(order).await, Answer::Done));
    Invitation {
        frontend: front.address.parse().unwrap(),
        kite: name,
        token,
    }
}

async fn join(invitation: &Invitation, secret: &Secret) -> Reply {
    ask_frontend(&*dialer(), invitation, secret).await.unwrap()
}

#[tokio::test]
async fn an_invitation_becomes_a_kite_that_flies() {
    let state = tempfile::tempdir().unwrap();
    let front = start(state.path());
    let invitation = invite(&front, DAVE).await;
    let secret = new_secret().unwrap();
    let joined = Reply::Joined {
        protocols: vec!["http".into()],
    };
    assert_eq!(join(&invitation, &secret).await, joined);
    // Where the answer was lost it is asked again.
    assert_eq!(join(&invitation, &secret).await, joined);
    let other = new_secret().unwrap();
    assert_eq!(
        join(&invitation, &other).await,
        Reply::Refused(Refusal::Used)
    );

    let (origin, _) = origin(b"").await;
    let text = String::from_utf8(secret.expose().to_vec()).unwrap();
    let _back = roles::backend(
        &front.address,
        vec![service(Protocol::Http, DAVE, origin, &text)],
    );
    until("the kite flies", || {
        kites(&front.handle) == [format!("http:{DAVE}")]
    })
    .await;

    // What was taken back is gone at once, and the invitation does not bring it again.
    let remove = Order::Remove { name: DAVE.into() };
    assert!(matches!(front.handle.kites(remove).await, Answer::Done));
    until("it comes down", || kites(&front.handle).is_empty()).await;
    assert_eq!(
        join(&invitation, &secret).await,
        Reply::Refused(Refusal::Removed)
    );
    front.stop().await;
    // What its last connections hold they hold for a moment more.
    until("the book is free", || Book::open(state.path()).is_ok()).await;
    let front = start(state.path());
    let again = Invitation {
        frontend: front.address.parse().unwrap(),
        ..invitation
    };
    assert_eq!(
        join(&again, &secret).await,
        Reply::Refused(Refusal::Removed)
    );
}

#[tokio::test]
async fn only_its_holder_hears_what_became_of_it_and_guessers_wait() {
    let state = tempfile::tempdir().unwrap();
    let front = start(state.path());
    let invitation = invite(&front, DAVE).await;
    let secret = new_secret().unwrap();
    let revoke = Order::Revoke { name: DAVE.into() };
    assert!(matches!(front.handle.kites(revoke).await, Answer::Done));
    assert_eq!(
        join(&invitation, &secret).await,
        Reply::Refused(Refusal::Revoked)
    );
    let guess = Invitation {
        token: Token::new(),
        ..invitation.clone()
    };
    let mut unknown = 0;
    let last = loop {
        match join(&guess, &secret).await {
            Reply::Refused(Refusal::Unknown) if unknown < 100 => unknown += 1,
            other => break other,
        }
    };
    assert_eq!((unknown, last), (10, Reply::Refused(Refusal::Busy)));
    // Others may share the guesser's address, as all behind one Tor exit do: who holds a right one waits for nobody.
    assert_eq!(
        join(&invitation, &secret).await,
        Reply::Refused(Refusal::Revoked)
    );
    let honest = invite(&front, DAVE).await;
    assert!(matches!(join(&honest, &secret).await, Reply::Joined { .. }));
    // Kites, too, are a matter of their own.
    assert!(kites(&front.handle).is_empty());
}

#[tokio::test]
async fn nothing_is_taken_in_the_clear_nor_from_a_strange_frontend() {
    let state = tempfile::tempdir().unwrap();
    let front = start(state.path());
    let invitation = invite(&front, DAVE).await;
    let secret = new_secret().unwrap();
    let request = put_ask(&Ask {
        token: invitation.token.text().to_string(),
        kite: DAVE.into(),
        secret: String::from_utf8(secret.expose().to_vec()).unwrap(),
    });
    let mut conn = TcpStream::connect(front.public).await.unwrap();
    conn.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    let reading = conn.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), reading)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503"), "{answer:?}");

    // Another key than the invitation names hears nothing of it.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = start(elsewhere.path());
    let (place, _) = other.address.split_once('#').unwrap();
    let (_, pin) = front.address.split_once('#').unwrap();
    let misled = Invitation {
        frontend: format!("{place}#{pin}").parse().unwrap(),
        ..invitation.clone()
    };
    let refused = ask_frontend(&*dialer(), &misled, &secret).await;
    assert!(matches!(refused, Err(JoinError::Dial { .. })));
    // And it was not spent by all that.
    assert!(matches!(
        join(&invitation, &secret).await,
        Reply::Joined { .. }
    ));
}

#[tokio::test]
async fn another_program_is_told_from_a_frontend_that_says_no() {
    let dir = tempfile::tempdir().unwrap();
    let server = kite::tls::TlsServer::load_or_create(dir.path()).unwrap();
    let pin = server.pin();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for last in [
            &b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n"[..],
            b"",
        ] {
            let (conn, _) = listener.accept().await.unwrap();
            let mut conn = server.accept(conn).await.unwrap();
            let mut request = [0; 64];
            conn.read_exact(&mut request).await.unwrap();
            conn.write_all(last).await.unwrap();
            conn.shutdown().await.unwrap();
        }
    });
    let invitation = Invitation {
        frontend: format!("{at}#{pin}").parse().unwrap(),
        kite: DAVE.parse().unwrap(),
        token: Token::new(),
    };
    let secret = new_secret().unwrap();
    let older = ask_frontend(&*dialer(), &invitation, &secret).await;
    assert!(matches!(older, Err(JoinError::Foreign(_))), "{older:?}");
    let lost = ask_frontend(&*dialer(), &invitation, &secret).await;
    assert!(matches!(lost, Err(JoinError::Lost(_))), "{lost:?}");
}
