//! Many who come with half an invitation. Whoever has a whole one, and every visitor, is served meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use kite::backend::join::ask_frontend;
use kite::dial::BoxConn;
use kite::frontend::doorstep::MAX_WAITING_PER_ADDRESS;
use kite::invitation::{Invitation, new_secret};
use kite::proxy_header::{Version, write};
use kite::wire::join::{Ask, Reply, put_ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::attacks::{dial, read_head};
use crate::invitations::invite;
use crate::roles::{any, dialer};
use crate::siege::{SOON, behind_balancers, is_served};

/// A way to a port behind load balancers by which all come from one address.
async fn way_from(address: [u8; 4], to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let header = write(Version::V2, Some((address, 9).into()), 80, "x");
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                far.write_all(&header).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    at
}

/// The same frontend, by another way.
fn by(way: SocketAddr, invitation: &Invitation) -> Invitation {
    let address = invitation.frontend.to_string();
    let (_, pin) = address.split_once('#').unwrap();
    Invitation {
        frontend: format!("{way}#{pin}").parse().unwrap(),
        ..invitation.clone()
    }
}

/// One who has said this much of what it came for.
async fn begun(invitation: &Invitation, so_far: &[u8]) -> BoxConn {
    let (mut conn, _) = dial(&invitation.frontend.to_string()).await;
    conn.write_all(so_far).await.unwrap();
    conn.flush().await.unwrap();
    conn
}

async fn joins(invitation: &Invitation) {
    let (secret, dialer) = (new_secret().unwrap(), dialer());
    let joining = timeout(SOON, ask_frontend(&*dialer, invitation, &secret));
    let reply = joining.await.expect("in time").unwrap();
    assert!(matches!(reply, Reply::Joined { .. }), "{reply:?}");
}

#[tokio::test]
async fn half_invitations_crowd_out_each_other() {
    let state = tempfile::tempdir().unwrap();
    let (front, _back) = behind_balancers(state.path()).await;
    let crowded = way_from([198, 51, 100, 1], front.port_kite).await;
    let other = way_from([198, 51, 100, 2], front.port_kite).await;

    let names = ["slow", "near", "far", "none"].map(|n| format!("{n}.other.example"));
    let mut invitations = Vec::new();
    for name in &names {
        invitations.push(invite(&front, name).await);
    }
    let [slow, near, far, none] = &invitations[..] else {
        panic!("four")
    };
    let request = put_ask(&Ask {
        token: slow.token.text().to_string(),
        kite: names[0].clone(),
        secret: String::from_utf8(new_secret().unwrap().expose().to_vec()).unwrap(),
    });
    let (first, last) = request.split_at(request.len() - 9);
    let mut bystander = begun(&by(other, slow), first).await;
    let none = by(crowded, none);
    let mut crowd = Vec::new();
    for n in 0..MAX_WAITING_PER_ADDRESS + 20 {
        // In the head, before the body, and within it.
        let said = [40, request.len() - 200, request.len() - 1][n % 3];
        crowd.push(begun(&none, &request[..said]).await);
    }
    // The first of them have gone, long before they would have been too slow.
    for conn in &mut crowd[..20] {
        let end = timeout(Duration::from_secs(5), conn.read(&mut [0; 1])).await;
        assert!(!matches!(end.expect("in time"), Ok(1..)));
    }
    let mut still = [0; 1];
    let newest = crowd.last_mut().unwrap().read(&mut still);
    assert!(timeout(Duration::from_millis(50), newest).await.is_err());
    // Whoever behaves well is served, from the same address too.
    joins(&by(crowded, near)).await;
    joins(&by(other, far)).await;
    is_served(crowded, b"").await;
    // Somebody else's slow one is still heard out.
    bystander.write_all(last).await.unwrap();
    bystander.flush().await.unwrap();
    let answer = timeout(SOON, read_head(&mut bystander)).await;
    let answer = answer.expect("in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
