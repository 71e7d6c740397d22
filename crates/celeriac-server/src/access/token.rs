//! The tokens and their roles.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What one may do; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look at tasks, streams, queues and workers.
    Read,
    /// Submit, revoke and retry tasks.
    Operate,
    /// Pause and purge queues, drop dead letters, command workers.
    Admin,
}

impl Role {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        match text {
            "read" => Ok(Self::Read),
            "operate" => Ok(Self::Operate),
            "admin" => Ok(Self::Admin),
            _ => Err(TokenError::UnknownRole),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a token cannot be used. None of these shows the token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Too short to resist being guessed.
    #[error("a token has at least {TOKEN_LENGTH_MIN} characters; `openssl rand -hex 32` makes a good one")]
    TooShort,
    /// So long that no header could carry it.
    #[error("a token has at most {TOKEN_LENGTH_MAX} characters")]
    TooLong,
    /// It would not come through a header.
    #[error("a token is made of printable ASCII characters without spaces")]
    Characters,
    /// What stands before the colon is no role.
    #[error("write a token as SECRET, or as ROLE:SECRET with one of the roles read, operate, admin")]
    UnknownRole,
    /// There are too many.
    #[error("at most {TOKENS_MAX} tokens can be configured")]
    TooMany,
    /// The file of tokens cannot be read.
    #[error("cannot read the tokens in {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or variable that is there to hold tokens holds none.
    #[error("{0} holds no token")]
    Empty(String),
}

/// Fewer characters than this could be guessed.
const TOKEN_LENGTH_MIN: usize = 16;
/// More than this has no use.
const TOKEN_LENGTH_MAX: usize = 1_024;
/// Each token costs a comparison on every request.
const TOKENS_MAX: usize = 100;

/// Who may use a server: the holders of tokens, each with a role; or everybody who can reach it, which has to be this
/// machine alone. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Vec<Token>,
    hosts: Vec<String>,
    /// Signs stream tokens.
    key: [u8; 32],
}

/// A token as it is kept: what it is cannot be told from it.
#[derive(Clone, Copy)]
struct Token {
    role: Role,
    digest: [u8; 32],
}

/// Builds an [`Access`].
#[derive(Default)]
pub struct AccessBuilder {
    tokens: Vec<Token>,
    hosts: Vec<String>,
}

impl Access {
    /// Open to everybody who can reach it. [`listener::bind`](crate::listener::bind) then refuses all but loopback.
    #[must_use]
    pub fn open() -> Self {
        AccessBuilder::default().build()
    }

    /// Starts with no token.
    #[must_use]
    pub fn builder() -> AccessBuilder {
        AccessBuilder::default()
    }

    /// Whether there is no token, so that everybody is let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.tokens.is_empty()
    }

    /// Host names, beside those of loopback, under which an open server may be called.
    pub(super) fn hosts(&self) -> &[String] {
        &self.inner.hosts
    }

    /// The token that `secret` is, by number, and its role.
    pub(super) fn identify(&self, secret: &str) -> Option<(usize, Role)> {
        let digest = sha256(secret.as_bytes());
        // All are compared, and which of them it was is not branched upon, so that the time tells nothing.
        let mut found = Choice::from(0);
        let mut number = 0u32;
        for (at, token) in self.inner.tokens.iter().enumerate() {
            let equal = token.digest[..].ct_eq(&digest[..]);
            number.conditional_assign(&(at as u32), equal);
            found |= equal;
        }
        let number = number as usize;
        bool::from(found).then(|| (number, self.inner.tokens[number].role))
    }

    /// The signature of `message` under the key of stream tokens.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 32] {
        mac(&self.inner.key, message)
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::open()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<Role> = self.inner.tokens.iter().map(|token| token.role).collect();
        f.debug_struct("Access")
            .field("tokens", &roles)
            .field("hosts", &self.inner.hosts)
            .finish_non_exhaustive()
    }
}

impl AccessBuilder {
    /// Lets the holders of `secret` in. Of one secret under several roles the largest counts.
    ///
    /// # Errors
    /// When the secret could be guessed, or could not be sent.
    pub fn token(mut self, role: Role, secret: &str) -> Result<Self, TokenError> {
        if secret.len() < TOKEN_LENGTH_MIN {
            return Err(TokenError::TooShort);
        }
        if secret.len() > TOKEN_LENGTH_MAX {
            return Err(TokenError::TooLong);
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Characters);
        }
        let digest = sha256(secret.as_bytes());
        let full = self.tokens.len() >= TOKENS_MAX;
        match self.tokens.iter_mut().find(|token| token.digest == digest) {
            Some(token) => token.role = token.role.max(role),
            None if full => return Err(TokenError::TooMany),
            None => self.tokens.push(Token { role, digest }),
        }
        Ok(self)
    }

    /// A token as it stands on a command line: `SECRET`, for the role admin, or `ROLE:SECRET`.
    ///
    /// # Errors
    /// As [`AccessBuilder::token`]; and when there is a colon and what stands before it is no role.
    pub fn parse(self, text: &str) -> Result<Self, TokenError> {
        match text.split_once(':') {
            Some((role, secret)) => self.token(role.parse()?, secret),
            None => self.token(Role::Admin, text),
        }
    }

    /// Several, separated by commas or white space, as they stand in an environment variable called `name`.
    ///
    /// # Errors
    /// As [`AccessBuilder::parse`]; and when there is none, since who sets the variable does not want an open server.
    pub fn parse_variable(self, name: &str, text: &str) -> Result<Self, TokenError> {
        self.parse_all(name, text.split(|c: char| c == ',' || c.is_whitespace()))
    }

    /// Those in a file, one a line; empty lines, and lines that begin with `#`, do not count.
    ///
    /// # Errors
    /// As [`AccessBuilder::parse`]; and when the file cannot be read, or holds none.
    pub fn parse_file(self, path: &Path) -> Result<Self, TokenError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::File { path: shown.clone(), source })?;
        self.parse_all(&shown, text.lines().filter(|line| !line.trim_start().starts_with('#')))
    }

    fn parse_all<'a>(self, place: &str, texts: impl Iterator<Item = &'a str>) -> Result<Self, TokenError> {
        let mut texts = texts.map(str::trim).filter(|text| !text.is_empty()).peekable();
        if texts.peek().is_none() {
            return Err(TokenError::Empty(place.to_owned()));
        }
        texts.try_fold(self, Self::parse)
    }

    /// Lets an open server be called under this host name too, as one behind a proxy on the same machine is. Without a
    /// token every other name but those of loopback is refused: a page on the internet can make its own name mean
    /// this machine.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        self.hosts.push(name.to_ascii_lowercase());
        self
    }

    /// Whom the tokens so far let in; without one, everybody.
    #[must_use]
    pub fn build(self) -> Access {
        // Every node that has the same tokens, in whatever order, honours the stream tokens of the others, and a restart
        // changes nothing.
        let mut digests: Vec<[u8; 32]> = self.tokens.iter().map(|token| token.digest).collect();
        digests.sort_unstable();
        let material = match digests.is_empty() {
            true => [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat(),
            false => digests.concat(),
        };
        let key = mac(&material, b"celeriac stream tokens");
        Access { inner: Arc::new(Inner { tokens: self.tokens, hosts: self.hosts, key }) }
    }
}

impl fmt::Debug for AccessBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<Role> = self.tokens.iter().map(|token| token.role).collect();
        f.debug_struct("AccessBuilder")
            .field("tokens", &roles)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "reader-0123456789";
    const ADMIN: &str = "admin-0123456789:with-a-colon";

    fn access() -> Access {
        let builder = Access::builder().token(Role::Read, READ).unwrap();
        builder.parse(&format!("admin:{ADMIN}")).unwrap().build()
    }

    #[test]
    fn each_token_is_known_by_all_of_it() {
        let access = access();
        assert_eq!(access.identify(READ), Some((0, Role::Read)));
        assert_eq!(access.identify(ADMIN), Some((1, Role::Admin)));
        for wrong in ["", &READ[1..], &READ[..READ.len() - 1], "READER-0123456789", "admin"] {
            assert_eq!(access.identify(wrong), None, "{wrong:?}");
        }
        assert_eq!(Access::open().identify(""), None);
        assert!(Access::open().is_open() && !access.is_open());
    }

    #[test]
    fn what_stands_on_a_command_line() {
        let parse = |text: &str| Access::builder().parse(text).map(AccessBuilder::build);
        let role = |text: &str, secret: &str| parse(text).unwrap().identify(secret).unwrap().1;
        assert_eq!(role(READ, READ), Role::Admin, "without a role it is one for everything");
        assert_eq!(role(&format!("operate:{READ}"), READ), Role::Operate);
        assert!(matches!(parse("short"), Err(TokenError::TooShort)));
        assert!(matches!(parse("read:short"), Err(TokenError::TooShort)));
        assert!(matches!(parse(&format!("owner:{READ}")), Err(TokenError::UnknownRole)));
        assert!(matches!(parse("with a space 0123456789"), Err(TokenError::Characters)));
        assert!(matches!(parse(&"x".repeat(1_025)), Err(TokenError::TooLong)));
        let error = parse("owner:hunter2-hunter2-hunter2").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn variables_and_files_hold_several() {
        let text = format!("read:{READ}, admin:{ADMIN}\n");
        let access = Access::builder().parse_variable("TOKENS", &text).unwrap().build();
        assert_eq!(access.identify(ADMIN), Some((1, Role::Admin)));
        assert!(matches!(Access::builder().parse_variable("TOKENS", " , "), Err(TokenError::Empty(_))));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        std::fs::write(&file, format!("# for people\n\nread:{READ}\n")).unwrap();
        let access = Access::builder().parse_file(&file).unwrap().build();
        assert_eq!(access.identify(READ), Some((0, Role::Read)));
        std::fs::write(&file, "# none\n").unwrap();
        assert!(matches!(Access::builder().parse_file(&file), Err(TokenError::Empty(_))));
        assert!(matches!(Access::builder().parse_file(folder.path()), Err(TokenError::File { .. })));
    }

    #[test]
    fn nothing_that_is_shown_shows_a_token() {
        let builder = Access::builder().token(Role::Read, READ).unwrap();
        let shown = format!("{builder:?} {:?}", access());
        assert!(shown.contains("Read") && !shown.contains("0123456789"), "{shown}");
    }

    #[test]
    fn nodes_with_the_same_tokens_sign_alike() {
        let other =
            Access::builder().token(Role::Admin, ADMIN).unwrap().token(Role::Read, READ).unwrap().build();
        assert_eq!(access().sign(b"x"), other.sign(b"x"));
        let one_more = Access::builder().token(Role::Admin, ADMIN).unwrap().build();
        assert_ne!(access().sign(b"x"), one_more.sign(b"x"));
        assert_ne!(Access::open().sign(b"x"), Access::open().sign(b"x"));
    }
}
