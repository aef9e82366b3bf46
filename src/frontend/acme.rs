//! Certificates from an authority (ACME, RFC 8555): ordered, proved, kept, and renewed in time.
//!
//! One task does all of it, one name after the other, and no visitor waits for it. The authority looks whether a
//! name leads here by the ports that visitors use: by a hello of its own kind on 443 (RFC 8737), or by a path on 80.
//! [`Challenges`] has the answers while they are wanted.

mod client;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use self::client::Client;
use super::certificates::Certificates;
use super::{FrontendError, PublicSide};
use crate::code::Code;
use crate::config::{Acme, CertificateFiles};
use crate::dial::AuthorityDialer;
use crate::kite::KiteName;
use crate::plain::plain;
use crate::random::jitter;
use crate::tls::{Challenge, FileError, WebClient, put_secret, secret_text};

/// What is shown of the authority's own words, in letters.
const MAX_DETAIL: usize = 400;
/// Longest wait for one certificate, from the order to the chain.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long the authority may take to look, or to sign.
const PATIENCE: Duration = Duration::from_secs(90);
/// The wait after a first failure; twice as long after each further one. Let's Encrypt takes five failed
/// attempts an hour for a name.
const RETRY_FIRST: Duration = Duration::from_secs(5 * 60);
/// The longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(12 * 3600);
/// Shortest time between two orders for a name, whatever its certificate says.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest sleep: a machine that was suspended finds out so late at most that its certificate is old.
const NAP: Duration = Duration::from_secs(3600);
/// The account's file.
const ACCOUNT: &str = "account.json";
/// What the authority asks for by HTTP (RFC 8555 §8.3).
const HTTP_PATH: &str = "/.well-known/acme-challenge/";

/// What an authority that looks here is to be told.
#[derive(Default)]
pub(super) struct Challenges(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    tls: HashMap<KiteName, Challenge>,
    /// Key authorisations by name and token.
    http: HashMap<(KiteName, String), String>,
}

impl Challenges {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a hello that offers the authority's protocol. None if nothing is asked for this name: then it is
    /// a kite's own affair.
    pub(super) fn tls(&self, name: &KiteName) -> Option<Challenge> {
        self.pending().tls.get(name).cloned()
    }

    /// For a request with this path: what to answer, if an answer is wanted here.
    pub(super) fn http(&self, name: &KiteName, path: &str) -> Option<String> {
        let token = path.strip_prefix(HTTP_PATH)?;
        let key = (name.clone(), token.to_owned());
        self.pending().http.get(&key).cloned()
    }
}

/// Takes its answer back when the authority has looked.
struct Answering<'a> {
    challenges: &'a Challenges,
    name: KiteName,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let mut pending = self.challenges.pending();
        pending.tls.remove(&self.name);
        pending.http.retain(|(name, _), _| *name != self.name);
    }
}

/// Gets certificates, and has them renewed.
pub(super) struct Issuer {
    config: Acme,
    client: Client,
    dir: PathBuf,
    /// By which port the authority is likely to find us.
    by_tls: bool,
    challenges: Arc<Challenges>,
    certificates: Arc<Certificates>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{}", .0)]
    Acme(#[from] instant_acme::Error),
    #[error(
        "the authority found no proof that the name leads here: {0}; let the name lead to this machine (DNS), \
         and open its port 443 or 80 to everybody"
    )]
    NotProved(String),
    #[error("the authority offers no way of proof that kite knows (TLS-ALPN-01, HTTP-01)")]
    NoWay,
    #[error("the authority did not finish within {} s", ORDER_TIMEOUT.as_secs())]
    TimedOut,
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the account could not be written down: {0}")]
    Account(#[from] serde_json::Error),
}

/// The account on disk. It is good at one authority.
#[derive(Serialize, Deserialize)]
struct Saved {
    directory: String,
    account: AccountCredentials,
}

impl Issuer {
    /// `ports` are those that are listened on. Certificates that are there already are put to use.
    pub(super) fn new(
        config: Acme,
        state_dir: PathBuf,
        ports: &[u16],
        challenges: Arc<Challenges>,
        certificates: Arc<Certificates>,
    ) -> Result<Self, FrontendError> {
        let tls = WebClient::new(config.ca_file.as_deref())?;
        let issuer = Self {
            client: Client(Arc::new(AuthorityDialer::new(PublicSide(()), tls))),
            dir: state_dir.join("acme"),
            by_tls: ports.contains(&443) || !ports.contains(&80),
            config,
            challenges,
            certificates,
        };
        for name in &issuer.config.names {
            let files = issuer.files(name);
            if !files.cert.exists() {
                continue;
            }
            if let Err(e) = issuer.certificates.put(files) {
                tracing::warn!(
                    "[{}] {e}; a new certificate will be got",
                    Code::CertificateUnusable
                );
            }
        }
        Ok(issuer)
    }

    fn files(&self, name: &KiteName) -> CertificateFiles {
        let path = self.dir.join(format!("{name}.pem"));
        CertificateFiles {
            cert: path.clone(),
            key: path,
            default: false,
            endpoints: self.config.endpoints,
            redirect: self.config.redirect,
        }
    }

    /// Gets what is missing, and renews what grows old, for ever.
    pub(super) async fn run(self) {
        let now = SystemTime::now();
        let mut plan: Vec<_> = self
            .config
            .names
            .iter()
            .cloned()
            .map(|name| {
                let due = self.renewal(&name).unwrap_or(now);
                Turn {
                    name,
                    due,
                    wait: RETRY_FIRST,
                    by_tls: self.by_tls,
                }
            })
            .collect();
        loop {
            let now = SystemTime::now();
            for turn in plan.iter_mut().filter(|turn| turn.due <= now) {
                self.take(turn).await;
            }
            let next = plan.iter().map(|turn| turn.due).min().unwrap_or(now);
            let rest = next.duration_since(SystemTime::now()).unwrap_or_default();
            sleep(rest.min(NAP)).await;
        }
    }

    /// One attempt for one name.
    async fn take(&self, turn: &mut Turn) {
        let name = &turn.name;
        let outcome = timeout(ORDER_TIMEOUT, self.issue(name, turn.by_tls)).await;
        match outcome.unwrap_or(Err(Trouble::TimedOut)) {
            Ok(()) => {
                turn.wait = RETRY_FIRST;
                let now = SystemTime::now();
                // One that is due already when it comes says that a clock is wrong: authorities count what they give.
                turn.due = match self.renewal(name) {
                    Some(due) if due > now => due.max(now + PAUSE),
                    _ => now + RETRY_FIRST,
                };
            }
            Err(e) => {
                let pause = jitter(turn.wait);
                turn.wait = (turn.wait * 2).min(RETRY_MAX);
                turn.due = SystemTime::now() + pause;
                if matches!(e, Trouble::NotProved(_)) {
                    turn.by_tls = !turn.by_tls;
                }
                tracing::error!(
                    "[{}] no certificate for {name} from {}: {}; next attempt in {} min",
                    Code::NoCertificate,
                    self.config.directory,
                    plain(&e.to_string(), MAX_DETAIL),
                    pause.as_secs().div_ceil(60)
                );
            }
        }
    }

    /// When the certificate that is held is to be renewed: when a third of its life is left, or a little
    /// sooner, so that not all of the world's come at once.
    fn renewal(&self, name: &KiteName) -> Option<SystemTime> {
        let held = self.certificates.of(&self.files(name))?;
        let (from, until) = held.certificate.validity();
        let life = until.duration_since(from).ok()?;
        let spread = jitter(life / 15);
        Some(until - life / 3 - spread)
    }

    /// Orders a certificate, proves the name, and puts the certificate to use.
    async fn issue(&self, name: &KiteName, by_tls: bool) -> Result<(), Trouble> {
        tracing::info!(
            "asking {} for a certificate for {name}",
            self.config.directory
        );
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(name.to_string())];
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let answering = Answering {
            challenges: &self.challenges,
            name: name.clone(),
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let (first, second) = match by_tls {
                true => (ChallengeType::TlsAlpn01, ChallengeType::Http01),
                false => (ChallengeType::Http01, ChallengeType::TlsAlpn01),
            };
            let offered =
                |kind: &ChallengeType| authorization.challenges.iter().any(|c| c.r#type == *kind);
            let kind = if offered(&first) { first } else { second };
            let by_tls = kind == ChallengeType::TlsAlpn01;
            let mut challenge = authorization.challenge(kind).ok_or(Trouble::NoWay)?;
            let authorisation = challenge.key_authorization();
            if by_tls {
                let answer = Challenge::new(name, authorisation.digest().as_ref());
                let answer = answer.ok_or(Trouble::NoWay)?;
                self.challenges.pending().tls.insert(name.clone(), answer);
            } else {
                let key = (name.clone(), challenge.token.clone());
                let answer = authorisation.as_str().to_owned();
                self.challenges.pending().http.insert(key, answer);
            }
            challenge.set_ready().await?;
        }
        let patience = RetryPolicy::new().timeout(PATIENCE);
        let ready = order.poll_ready(&patience).await;
        drop(answering);
        match ready {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(instant_acme::Error::Api(_)) => {
                return Err(Trouble::NotProved(why(&mut order).await));
            }
            Err(e) => return Err(e.into()),
        }
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_string()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        order
            .finalize_csr(params.serialize_request(&key)?.der())
            .await?;
        let chain = order.poll_certificate(&patience).await?;
        let both = Zeroizing::new(format!("{}{chain}", *Zeroizing::new(key.serialize_pem())));
        put_secret(&self.dir, &format!("{name}.pem"), both.as_bytes())?;
        self.certificates.put(self.files(name))?;
        if let Some(held) = self.certificates.of(&self.files(name)) {
            held.announce();
        }
        Ok(())
    }

    /// The account at the authority; a new one if there is none yet.
    async fn account(&self) -> Result<Account, Trouble> {
        let builder = Account::builder_with_http(Box::new(self.client.clone()));
        let path = self.dir.join(ACCOUNT);
        if path.exists() {
            let text = secret_text(&path)?;
            match serde_json::from_slice::<Saved>(&text) {
                Ok(saved) if saved.directory == self.config.directory => {
                    return Ok(builder.from_credentials(saved.account).await?);
                }
                Ok(_) => {
                    tracing::info!("another authority than before: a new account is made there")
                }
                Err(e) => tracing::warn!(
                    "[{}] {}: {e}; a new account is made",
                    Code::NoCertificate,
                    path.display()
                ),
            }
        }
        let contact = self.config.contact.as_ref().map(|c| format!("mailto:{c}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wish = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory = self.config.directory.clone();
        let (account, credentials) = builder.create(&wish, directory.clone(), None).await?;
        let saved = Saved {
            directory,
            account: credentials,
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&saved)?);
        put_secret(&self.dir, ACCOUNT, &text)?;
        Ok(account)
    }
}

/// When a name is looked after next.
struct Turn {
    name: KiteName,
    due: SystemTime,
    /// The wait after the next failure.
    wait: Duration,
    by_tls: bool,
}

/// What the authority has against an order, in its own words.
async fn why(order: &mut instant_acme::Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        if let Some(problem) = state.challenges.iter().find_map(|c| c.error.as_ref()) {
            let detail = problem.detail.clone();
            return plain(&detail.unwrap_or_else(|| problem.to_string()), MAX_DETAIL);
        }
    }
    "it did not say why".to_owned()
}
