//! What of a configuration others can see: where its traffic goes, and in what dress. No secret is read for it, and
//! nothing is judged that has no bearing on that.

use super::*;
use crate::frontend::authority;

/// A backend's configuration as far as others see it.
#[derive(Debug)]
pub struct BackendOutline {
    /// Tor, the SOCKS port and the kites.
    pub node: NodeSide,
    /// Where it dials. Never empty.
    pub frontends: Vec<Frontend>,
}

/// A frontend's configuration as far as others see it.
#[derive(Debug)]
pub struct FrontendOutline {
    /// What may fly under which names, but for the kites of the book.
    pub kites: Vec<(KiteName, BTreeSet<Protocol>)>,
    /// What is carried, whatever these are allowed.
    pub policy: Policy,
    /// Below what strangers' kites may fly, and whether their nodes' answers are proof enough.
    pub open: Option<(KiteName, OpenProof)>,
    /// Whether backends may come through an onion service, too.
    pub onion: bool,
    /// Whether peers' addresses are logged.
    pub log_peers: bool,
    /// Whether it holds certificates: then it ends the TLS of kites that ask for it.
    pub certificates: bool,
    /// Whether it does so for `http` kites that did not ask.
    pub endpoints: bool,
    /// The authority that certificates come from.
    pub acme: Option<String>,
    /// Who is asked about other kites: the programs, and the zones of the DNS.
    pub authorities: Vec<authority::Source>,
}

/// Whose configuration a file is.
pub fn role_of(path: &Path) -> Result<rc::Role> {
    if rc::is_rc(path) {
        return Ok(Rc::read(&[path.to_path_buf()])?.role());
    }
    let (_, table) = Source::read::<AnyFile>(Some(path))?;
    Ok(match table.0.contains_key("listen") {
        true => rc::Role::Frontend,
        false => rc::Role::Backend,
    })
}

/// A file of either role.
#[derive(Deserialize, Default)]
struct AnyFile(toml::Table);

impl RoleFile for AnyFile {
    const ROLE: rc::Role = rc::Role::Backend;
}

impl BackendOutline {
    /// Reads file and flags.
    pub fn load(args: &BackendArgs) -> Result<Self> {
        let node = NodeSide::load(args)?;
        let (source, file): (Source, BackendFile) = Source::read(args.config.as_deref())?;
        let frontends = frontends(&source, args, file.frontends, node.via_tor)?;
        Ok(Self { node, frontends })
    }
}

impl FrontendOutline {
    /// Reads file and flags.
    pub fn load(args: &FrontendArgs) -> Result<Self> {
        let (source, file): (Source, FrontendFile) = Source::read(args.config.as_deref())?;
        let entry = |(i, entry): (usize, &GrantEntry)| {
            let key = format!("kites[{i}]");
            let words = entry.protocols.as_deref().unwrap_or(&args.protocols);
            Ok((
                parse_name(&source.at(format_args!("{key}.name")), &entry.name)?,
                parse_protocols(&source.at(format_args!("{key}.protocols")), words)?,
            ))
        };
        let flag = |text: &String| {
            Ok((
                parse_name("--domain", text)?,
                parse_protocols("--protocols", &args.protocols)?,
            ))
        };
        let mut kites: Vec<(KiteName, BTreeSet<Protocol>)> = match args.domain.as_slice() {
            [] => file
                .kites
                .iter()
                .enumerate()
                .map(entry)
                .collect::<Result<_>>()?,
            domains => domains.iter().map(flag).collect::<Result<_>>()?,
        };
        for (_, protocols) in &mut kites {
            file.policy.narrow(protocols);
        }
        let open = (file.open)
            .map(|table| tub::open(&source, table, &file.limits))
            .transpose()?;
        let acme = file.acme.map(|table| acme(&source, table)).transpose()?;
        let authorities = parse_authorities(&source, file.authorities, &file.limits)?;
        let endpoints = |c: &CertificateEntry| c.endpoints;
        Ok(Self {
            kites,
            policy: file.policy,
            open: open.map(|open| (open.domain, open.proof)),
            onion: args.onion || file.onion,
            log_peers: args.log_peers || file.log_peers.unwrap_or(false),
            certificates: acme.is_some() || !file.certificates.is_empty(),
            endpoints: acme.as_ref().is_some_and(|acme| acme.endpoints)
                || file.certificates.iter().any(endpoints),
            acme: acme.map(|acme| acme.directory),
            authorities: authorities.into_iter().map(|a| a.source).collect(),
        })
    }
}
