//! Recognises the `TOLLGATE_` variables that are settings.

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::Cli;

/// Returns the names of variables that look like settings but are not, in order: mostly misspelt
/// ones. Their values are never shown.
///
/// Kubernetes tells every container where the Services of its namespace are, by variables such as `TOLLGATE_PORT=tcp://10.0.0.1:50051`
/// for one that is called `tollgate`. Those are neither settings nor mistakes.
#[must_use]
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let ours = known();
    let names = names.filter_map(|name| name.into_string().ok());
    let mut unknown: Vec<_> =
        names.filter(|name| name.starts_with("TOLLGATE_") && !ours.contains(name) && !is_of_kubernetes(name)).collect();
    unknown.sort();
    unknown
}

/// The secret key with which `tollgate keys token` signs. No flag says it, as everybody on the machine could read that.
pub const KEY: &str = "TOLLGATE_KEY";

/// The variables of all commands.
fn known() -> Vec<String> {
    let cli = Cli::command();
    let arguments = cli.get_subcommands().flat_map(clap::Command::get_arguments);
    let variables = arguments.filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
    variables.chain([KEY.to_owned()]).collect()
}

/// `..._SERVICE_HOST`, `..._SERVICE_PORT`, `..._SERVICE_PORT_<NAME>`, `..._PORT`, `..._PORT_<NUMBER>_<PROTOCOL>` and, below that, `_PROTO`,
/// `_PORT` and `_ADDR`, as
/// [documented](https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
fn is_of_kubernetes(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    name.match_indices("_PORT").any(|(at, found)| {
        let rest: Vec<_> = name[at + found.len()..].split('_').collect();
        let (start, port) = match rest.as_slice() {
            [""] => return true,
            [start, port, protocol] if ["TCP", "UDP", "SCTP"].contains(protocol) => (start, port),
            [start, port, protocol, of]
                if ["TCP", "UDP", "SCTP"].contains(protocol) && ["PROTO", "PORT", "ADDR"].contains(of) =>
            {
                (start, port)
            }
            _ => return false,
        };
        start.is_empty() && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_variable_is_told_and_what_kubernetes_says_is_not() {
        let quiet = [
            "PATH",
            "TOLLGATE_LISTEN",
            "TOLLGATE_CONFIG",
            "TOLLGATE_PORT",
            "TOLLGATE_PORT_50051_TCP",
            "TOLLGATE_PORT_50051_TCP_PROTO",
            "TOLLGATE_PORT_50051_TCP_PORT",
            "TOLLGATE_PORT_50051_UDP_ADDR",
            "TOLLGATE_SERVICE_HOST",
            "TOLLGATE_SERVICE_PORT",
            "TOLLGATE_SERVICE_PORT_GRPC",
            "TOLLGATE_METRICS_SERVICE_HOST",
            "TOLLGATE_METRICS_PORT",
            "TOLLGATE_METRICS_PORT_9090_TCP_ADDR",
        ];
        let loud = ["TOLLGATE_LISTN", "TOLLGATE_PORTS", "TOLLGATE_PORT_GRPC", "TOLLGATE_SERVICE", "TOLLGATE_"];
        let told = unknown_variables(quiet.iter().chain(&loud).map(OsString::from));
        let mut expected: Vec<_> = loud.map(str::to_owned).into();
        expected.sort();
        assert_eq!(told, expected);
    }

    #[test]
    fn no_variable_of_ours_is_one_that_kubernetes_may_set() {
        let ours = known();
        assert!(ours.len() >= 15 && ours.iter().all(|name| name.starts_with("TOLLGATE_")), "{ours:?}");
        assert_eq!(ours.iter().filter(|name| is_of_kubernetes(name)).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
