//! Storage-only: what a frontend carries that is of no use to phishers, and so may be offered to strangers.
//!
//! [`Policy`] narrows what kites may be used for. `begin` then holds each of their visitors, from the first byte to
//! the last, to what [`Storage`] says that storage traffic looks like. Not a byte is changed.

use std::task::{Context, Poll};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::registry::Terms;
use crate::kite::{KiteName, Protocol};
use crate::sniff::foolscap::Breach;
use crate::sniff::storage::Storage;
use crate::sniff::{ClientHello, HttpHead, TubId, Voice, alert};
use crate::tunnel::splice::{Inspect, Objection};

/// What a frontend carries, whatever its kites are allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Whatever a kite is allowed.
    #[default]
    Any,
    /// Foolscap, and on a port of the kite's own Tahoe's HTTPS storage protocol: nothing that a browser renders.
    StorageOnly,
}

impl Policy {
    /// May it be carried at all?
    pub fn carries(self, protocol: Protocol) -> bool {
        match self {
            Self::Any => true,
            Self::StorageOnly => matches!(protocol, Protocol::Foolscap | Protocol::TahoeHttps),
        }
    }

    /// Takes away what is not carried.
    pub fn narrow(self, terms: &mut Terms) {
        terms.retain(|protocol| self.carries(*protocol));
    }

    /// Is all but storage kept out?
    pub fn is_storage_only(self) -> bool {
        self == Self::StorageOnly
    }
}

/// How whoever wants something else over HTTP is told so.
pub(super) const NO_PAGES: Voice = Voice::Http(403);
/// The same in TLS.
const NO_HELLO: Voice = Voice::TlsAlert(alert::ACCESS_DENIED);

/// How a visitor came to a kite.
#[derive(Clone, Copy)]
pub(super) enum Arrived<'a> {
    /// By a request, which is all that it has said.
    Request(&'a HttpHead, &'a [u8]),
    /// By a hello, on the kite's own port; and all that it has said.
    Hello(&'a ClientHello, &'a [u8]),
}

/// Begins to follow a visitor of the kite `name`, which is for this tub alone if one is given; or says how it is
/// sent away.
pub(super) fn begin(
    name: &KiteName,
    tub: Option<TubId>,
    arrived: Arrived<'_>,
) -> Result<Storage, Voice> {
    match arrived {
        Arrived::Request(HttpHead { foolscap: None, .. }, _) => Err(NO_PAGES),
        Arrived::Request(_, first) => {
            Storage::foolscap(first, name, tub).map_err(|breach| match breach {
                // It looked like foolscap's request, and was none.
                Breach::NoUpgrade | Breach::NotFoolscap => NO_PAGES,
                breach => breach.voice(),
            })
        }
        // Tahoe's clients offer no protocol; each browser does, also one that was given an address instead of a name.
        Arrived::Hello(hello, _) if hello.alpn || hello.sni.is_some() => Err(NO_HELLO),
        Arrived::Hello(_, first) => {
            let mut storage = Storage::tls();
            storage.visitor(first).map_err(|_| NO_HELLO)?;
            Ok(storage)
        }
    }
}

/// What looks at a stream: what follows it, if its kite carries storage alone, and what charges it. So much of it has come
/// back already.
pub(super) fn follow<'a>(
    storage: Option<Box<Storage>>,
    meter: Option<Box<dyn Inspect + Send>>,
    answer: impl IntoIterator<Item = &'a Bytes>,
) -> Result<Option<Box<dyn Inspect + Send>>, Objection> {
    let Some(mut storage) = storage else {
        return Ok(meter);
    };
    for piece in answer {
        storage.origin(piece).map_err(objection)?;
    }
    Ok(Some(Box::new(Follow { storage, meter })))
}

struct Follow {
    storage: Box<Storage>,
    meter: Option<Box<dyn Inspect + Send>>,
}

fn objection(breach: Breach) -> Objection {
    Objection(breach.to_string())
}

/// The tunnel's bytes, which a splice calls the visitor's, are the origin's here.
impl Inspect for Follow {
    fn visitor_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        self.storage.origin(bytes).map_err(objection)?;
        match &mut self.meter {
            Some(meter) => meter.visitor_said(bytes),
            None => Ok(()),
        }
    }

    fn origin_said(&mut self, bytes: &[u8]) -> Result<(), Objection> {
        self.storage.visitor(bytes).map_err(objection)?;
        match &mut self.meter {
            Some(meter) => meter.origin_said(bytes),
            None => Ok(()),
        }
    }

    fn is_open(&self) -> bool {
        false
    }

    fn poll_objection(&mut self, cx: &mut Context<'_>) -> Poll<Objection> {
        match &mut self.meter {
            Some(meter) => meter.poll_objection(cx),
            None => Poll::Pending,
        }
    }
}
