//! What a stream must look like before the origin is dialled.
//!
//! A frontend is not trusted: it may be broken, or want to see whether the origin
//! is more than it should be. So the backend sniffs again, by the kite's
//! [`Protocol`], and nothing reaches the origin before the [`Gate`] says so. The
//! gate looks and never alters; it holds no socket and no clock.

use crate::kite::{KiteName, Protocol};
use crate::sniff::foolscap::{Breach, Negotiation, covers, hold};
use crate::sniff::{
    ClientHello, HttpHead, HttpKind, MAX_CLIENT_HELLO, MAX_HTTP_HEAD, Refusal, Sniff, TubId, Voice,
    alert, http, minecraft, tls, xmpp,
};

/// What is to be done with the bytes just shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Keep them; do not dial yet. Never the answer to bytes of the origin.
    Wait,
    /// All bytes of this direction shown so far may go on. The origin may be dialled.
    Pass,
    /// Close the stream. The gate stays shut from now on.
    Refuse(PolicyError),
}

/// Why a stream may not reach the origin. The visitor is at fault, or the
/// frontend that routed it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The first bytes are not well-formed.
    #[error(transparent)]
    Opening(#[from] Refusal),
    /// A foolscap kite's stream is not foolscap's.
    #[error(transparent)]
    Foolscap(#[from] Breach),
    /// This kite carries TLS only, and HTTP came.
    #[error("this kite carries TLS only")]
    ExpectedTls,
    /// This kite carries HTTP only, and TLS came.
    #[error("this kite carries HTTP only")]
    ExpectedHttp,
    /// This kite is found by server name, and there is none.
    #[error("the TLS visitor names no server")]
    NoServerName,
    /// The `Host` is not this kite's.
    #[error("the request is for another host")]
    OtherHost,
    /// The TLS server name is not this kite's.
    #[error("the TLS visitor wants another server")]
    OtherServerName,
    /// The XMPP stream, or the Minecraft player, is not for this kite.
    #[error("the visitor wants another server")]
    OtherServer,
    /// A CONNECT or a ping, which are for a frontend and not for an origin.
    #[error("the request is for a frontend")]
    ForFrontend,
    /// This kite carries WebSockets only.
    #[error("the request does not ask for a WebSocket")]
    NotWebsocket,
    /// The visitor closed before its first flight was complete.
    #[error("closed before the first flight was complete")]
    Incomplete,
}

impl PolicyError {
    /// How to tell the visitor, if the origin has not spoken yet.
    pub fn voice(&self) -> Voice {
        match self {
            PolicyError::Opening(refusal) => refusal.voice(),
            PolicyError::Foolscap(breach) => breach.voice(),
            PolicyError::ExpectedTls | PolicyError::NotWebsocket | PolicyError::ForFrontend => {
                Voice::Http(400)
            }
            PolicyError::ExpectedHttp => Voice::TlsAlert(alert::ACCESS_DENIED),
            PolicyError::OtherHost => Voice::Http(421),
            PolicyError::NoServerName | PolicyError::OtherServerName => {
                Voice::TlsAlert(alert::UNRECOGNIZED_NAME)
            }
            PolicyError::OtherServer | PolicyError::Incomplete => Voice::Close,
        }
    }
}

/// One stream's gate.
///
/// Show it every byte of the visitor, each once and in order, and those of the
/// origin likewise, until [`Gate::is_open`].
///
/// ```
/// # use kite::{kite::Protocol, backend::policy::{Gate, Verdict}};
/// let kite = "bob.example".parse().unwrap();
/// let mut gate = Gate::new(Protocol::Http, &kite, None);
/// assert_eq!(gate.from_visitor(b"GET / HTTP/1.1\r\n"), Verdict::Wait);
/// assert_eq!(gate.from_visitor(b"Host: bob.example\r\n\r\n"), Verdict::Pass);
/// assert!(gate.is_open());
/// ```
#[derive(Debug)]
pub struct Gate {
    kite: KiteName,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for the first flight. At most [`MAX_CLIENT_HELLO`] bytes are held.
    First {
        rule: Rule,
        held: Vec<u8>,
    },
    Foolscap(Negotiation),
    Open,
    Shut(PolicyError),
}

/// What a first flight must be.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// A ClientHello, whatever it names.
    AnyTls,
    /// A ClientHello that names the kite.
    NamedTls,
    /// A request whose `Host` names the kite.
    Http,
    /// The same, asking for a WebSocket.
    Websocket,
    /// An XMPP stream to the kite.
    Xmpp,
    /// A Minecraft handshake for the kite.
    Minecraft,
}

impl Gate {
    /// A gate for a kite, which may be a wildcard. `tub` is the node's TubID, if
    /// known; only foolscap kites have one.
    pub fn new(protocol: Protocol, kite: &KiteName, tub: Option<TubId>) -> Self {
        let first = |rule| State::First {
            rule,
            held: Vec::new(),
        };
        let state = match protocol {
            Protocol::Foolscap => State::Foolscap(Negotiation::new(kite.clone(), tub)),
            Protocol::TahoeHttps => first(Rule::AnyTls),
            Protocol::Https => first(Rule::NamedTls),
            Protocol::Http | Protocol::Http2 | Protocol::Http3 => first(Rule::Http),
            Protocol::Websocket => first(Rule::Websocket),
            Protocol::Xmpp => first(Rule::Xmpp),
            Protocol::Minecraft => first(Rule::Minecraft),
            Protocol::Raw => State::Open,
        };
        Self {
            kite: kite.clone(),
            state,
        }
    }

    /// Every byte passes from now on, in both directions: the gate need not be
    /// asked again. True from the start for raw kites, which may therefore be
    /// dialled before the visitor says anything.
    pub fn is_open(&self) -> bool {
        match &self.state {
            State::Open => true,
            State::Foolscap(negotiation) => negotiation.is_open(),
            State::First { .. } | State::Shut(_) => false,
        }
    }

    /// Shows the next bytes from the visitor.
    pub fn from_visitor(&mut self, chunk: &[u8]) -> Verdict {
        let (rule, held) = match &mut self.state {
            State::Open => return Verdict::Pass,
            State::Shut(why) => return Verdict::Refuse(*why),
            State::Foolscap(negotiation) => return verdict(negotiation.visitor(chunk)),
            State::First { rule, held } => (*rule, held),
        };
        hold(held, chunk, MAX_CLIENT_HELLO.max(MAX_HTTP_HEAD));
        match rule.judge(&self.kite, held) {
            Sniff::NeedMore => Verdict::Wait,
            Sniff::Found(()) => {
                self.state = State::Open;
                Verdict::Pass
            }
            Sniff::Refuse(why) => self.shut(why),
        }
    }

    /// Shows the next bytes from the origin, once it was dialled.
    pub fn from_origin(&mut self, chunk: &[u8]) -> Verdict {
        match &mut self.state {
            State::Open => Verdict::Pass,
            State::Foolscap(negotiation) => verdict(negotiation.origin(chunk)),
            State::Shut(why) => Verdict::Refuse(*why),
            // Nothing was let through, so nothing was dialled.
            State::First { .. } => self.shut(PolicyError::Incomplete),
        }
    }

    /// The visitor will send no more. [`Verdict::Refuse`] if bytes are still held
    /// back, or never came: then there is nothing to dial for.
    pub fn visitor_closed(&mut self) -> Verdict {
        match &mut self.state {
            State::Open => Verdict::Pass,
            State::Foolscap(negotiation) => verdict(negotiation.visitor_closed()),
            State::Shut(why) => Verdict::Refuse(*why),
            State::First { .. } => self.shut(PolicyError::Incomplete),
        }
    }

    fn shut(&mut self, why: PolicyError) -> Verdict {
        self.state = State::Shut(why);
        Verdict::Refuse(why)
    }
}

fn verdict(step: Sniff<(), Breach>) -> Verdict {
    match step {
        Sniff::NeedMore => Verdict::Wait,
        Sniff::Found(()) => Verdict::Pass,
        Sniff::Refuse(breach) => Verdict::Refuse(breach.into()),
    }
}

impl Rule {
    /// Judges all bytes since the first.
    fn judge(self, kite: &KiteName, bytes: &[u8]) -> Sniff<(), PolicyError> {
        let for_kite = |host: KiteName| match covers(kite, &host) {
            true => Ok(()),
            false => Err(PolicyError::OtherServer),
        };
        match self {
            Rule::Xmpp => return and(xmpp::opening(bytes), for_kite),
            Rule::Minecraft => return and(minecraft::handshake(bytes), for_kite),
            Rule::AnyTls | Rule::NamedTls | Rule::Http | Rule::Websocket => {}
        }
        // The other protocol is refused by its first byte, not when it is complete.
        match (bytes.first(), self) {
            (None, _) => Sniff::NeedMore,
            (Some(0x16), Rule::Http | Rule::Websocket) => Sniff::Refuse(PolicyError::ExpectedHttp),
            (Some(b'A'..=b'Z'), Rule::AnyTls | Rule::NamedTls) => {
                Sniff::Refuse(PolicyError::ExpectedTls)
            }
            (Some(0x16), Rule::AnyTls | Rule::NamedTls) => and(tls::client_hello(bytes), |hello| {
                self.judge_tls(kite, &hello)
            }),
            (Some(b'A'..=b'Z'), Rule::Http | Rule::Websocket) => {
                and(http::head(bytes), |head| self.judge_http(kite, &head))
            }
            (Some(_), _) => Sniff::Refuse(Refusal::NotHttpNorTls.into()),
        }
    }

    fn judge_tls(self, kite: &KiteName, hello: &ClientHello) -> Result<(), PolicyError> {
        match (self, &hello.sni) {
            (Rule::NamedTls, None) => Err(PolicyError::NoServerName),
            (Rule::NamedTls, Some(name)) if !covers(kite, name) => {
                Err(PolicyError::OtherServerName)
            }
            _ => Ok(()),
        }
    }

    fn judge_http(self, kite: &KiteName, head: &HttpHead) -> Result<(), PolicyError> {
        match (&head.kind, self) {
            (HttpKind::Tunnel | HttpKind::Ping | HttpKind::Connect { .. }, _) => {
                return Err(PolicyError::ForFrontend);
            }
            (HttpKind::Request, Rule::Websocket) => return Err(PolicyError::NotWebsocket),
            (HttpKind::Request | HttpKind::Websocket, _) => {}
        }
        match &head.host {
            Some(host) if covers(kite, host) => Ok(()),
            _ => Err(PolicyError::OtherHost),
        }
    }
}

/// Lets a policy have its say on what was found.
fn and<T>(
    found: Sniff<T>,
    rule: impl FnOnce(T) -> Result<(), PolicyError>,
) -> Sniff<(), PolicyError> {
    match found {
        Sniff::NeedMore => Sniff::NeedMore,
        Sniff::Found(found) => rule(found).map(Some).into(),
        Sniff::Refuse(why) => Sniff::Refuse(why.into()),
    }
}
