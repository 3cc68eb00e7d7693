//! Checks at the start that Redis's access list allows the commands that calls need. The commands of the check change
//! nothing.
//!
//! A script that is stopped half way by a command that it may not run is not rolled back: so this is found out before any call.

use std::collections::BTreeSet;

use redis::{Cmd, RedisError, Value};

use super::super::keys;
use super::{AnyError, ConnectError};

/// Runs the commands of scripts, over a key that does not exist and with arguments that change nothing, and returns the
/// forbidden ones. An access list is asked before anything else: also before a cluster notices that the key is not this
/// node's.
const PROBE: &str = "#!lua flags=allow-oom
local key, lacking = ARGV[1], {}
local function try(name, ...)
    local answer = redis.pcall(name, ...)
    local told = type(answer) == 'table' and answer.err or ''
    if string.find(told, 'permission', 1, true) or string.find(told, 'user executing the script', 1, true) then
        -- Versions word it in different ways: a command is run, and a key is accessed.
        local of_keys = string.find(told, ' access ', 1, true)
        lacking[#lacking + 1] = of_keys and '~' or string.lower(name)
    end
end
try('GET', key)
try('SET', key, '', 'XX')
try('DEL', key)
try('UNLINK', key)
try('HGET', key, 'f')
try('HMGET', key, 'f')
try('HSET', key, 'f', 'v', 'f without v')
try('HDEL', key, 'f')
try('HEXISTS', key, 'f')
try('HGETALL', key)
try('HSCAN', key, '0')
try('PEXPIREAT', key, '1')
try('TIME')
return lacking
";

/// Returns a harmless form of each command that Tollgate sends itself. The first one tries the commands of scripts.
pub(super) fn commands(waits: bool) -> impl Iterator<Item = (&'static str, Cmd)> {
    let key = keys::nobodys();
    let mut evaluate = redis::cmd("EVAL");
    evaluate.arg(PROBE).arg(0).arg(&key);
    // Never a script's digest: Redis answers that it has no such script.
    let mut by_digest = redis::cmd("EVALSHA");
    by_digest.arg("0".repeat(40)).arg(0);
    let mut unlink = redis::cmd("UNLINK");
    unlink.arg(key);
    // No replica: it is answered at once.
    let mut wait = redis::cmd("WAIT");
    wait.arg(0).arg(1);
    let wait = waits.then_some(("wait", wait));
    [("eval", evaluate), ("evalsha", by_digest), ("unlink", unlink)].into_iter().chain(wait)
}

/// The permissions that the access list lacks.
#[derive(Debug, Default)]
pub(super) struct Lacking(BTreeSet<String>);

impl Lacking {
    /// Notes what an answer to the command of this permission says of access. Another error is the caller's, unless it comes of what
    /// the command asks for.
    pub(super) fn note<E: Into<AnyError>>(
        &mut self,
        permission: &str,
        answer: Result<Value, E>,
    ) -> Result<(), AnyError> {
        let error = match answer.map_err(Into::into) {
            Ok(answer) => {
                self.note_probe(answer);
                return Ok(());
            }
            Err(error) => error,
        };
        let answered = error.downcast_ref::<RedisError>();
        if is_forbidden(&*error) {
            let of_keys = answered.and_then(RedisError::detail).is_some_and(|detail| detail.contains(" access "));
            self.0.insert(if of_keys { "~".to_owned() } else { permission.to_owned() });
            return Ok(());
        }
        // No such script; a replica, which may be promoted; a master without enough replicas. All this passes.
        let passes = answered
            .and_then(RedisError::code)
            .is_some_and(|code| ["NOSCRIPT", "READONLY", "NOREPLICAS", "MASTERDOWN", "OOM"].contains(&code));
        // A replica does not wait.
        if passes || (permission == "wait" && answered.is_some_and(|error| error.code() == Some("ERR"))) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// Other commands answer with other things.
    fn note_probe(&mut self, answer: Value) {
        match answer {
            Value::Array(told) => told.into_iter().for_each(|told| self.note_probe(told)),
            Value::Map(told) => told.into_iter().for_each(|(_, told)| self.note_probe(told)),
            Value::BulkString(name) => {
                let name = String::from_utf8_lossy(&name).into_owned();
                // The digest that SCRIPT LOAD answers is none.
                if name.len() < 40 {
                    self.0.insert(name);
                }
            }
            _ => {}
        }
    }

    /// Returns an error if the access list lacks a permission that calls need.
    pub(super) fn verdict(self, node: &str) -> Result<(), ConnectError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let keys = keys::pattern();
        let name = |lacking: &String| match lacking.as_str() {
            "~" => format!("the keys {keys}"),
            command => command.replace('|', " ").to_uppercase(),
        };
        let grant = |lacking: &String| match lacking.as_str() {
            "~" => format!("~{keys}"),
            command => format!("+{command}"),
        };
        let lacking = self.0.iter().map(name).collect::<Vec<_>>().join(", ");
        let grants = self.0.iter().map(grant).collect::<Vec<_>>().join(" ");
        Err(ConnectError::Forbidden { node: node.to_owned(), lacking, grants: format!("NAME {grants}") })
    }
}

/// Returns whether an access list caused this error.
pub(super) fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<RedisError>().is_some_and(|error| error.code() == Some("NOPERM"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::scripts;

    #[test]
    fn just_the_commands_of_the_deciding_scripts_are_tried() {
        let commands = |source: &str, call: &str| -> BTreeSet<String> {
            let name = |(at, _): (usize, &str)| {
                source[at + call.len()..].chars().take_while(char::is_ascii_uppercase).collect()
            };
            source.match_indices(call).map(name).collect()
        };
        let deciding = scripts().all().into_iter().filter(|script| !script.name.starts_with("inspect"));
        let called: BTreeSet<_> = deciding.flat_map(|script| commands(&script.source, "call('")).collect();
        assert_eq!(called, commands(PROBE, "try('"));
    }

    #[test]
    fn what_is_lacking_is_named_with_its_grant() {
        let mut lacking = Lacking::default();
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        lacking.note::<RedisError>("eval", Ok(Value::Array(vec![text("hset"), text("~")]))).unwrap();
        lacking.note::<RedisError>("script|load", Ok(text(&"0".repeat(40)))).unwrap();
        let error = |line: &str| redis::parse_redis_value(line.as_bytes()).unwrap().extract_error();
        lacking.note("unlink", error("-NOPERM this user has no permissions to run the 'unlink' command\r\n")).unwrap();
        lacking.note("evalsha", error("-NOSCRIPT No matching script\r\n")).unwrap();
        assert!(lacking.note("eval", error("-ERR odd\r\n")).is_err());
        let told = lacking.verdict("this Redis").unwrap_err().to_string();
        let keys = keys::pattern();
        assert!(told.contains(&format!("HSET, UNLINK, the keys {keys}")), "{told}");
        assert!(told.contains(&format!("ACL SETUSER NAME +hset +unlink ~{keys}")), "{told}");
    }
}
