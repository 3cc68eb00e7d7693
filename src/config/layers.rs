//! Chooses the source of each value: a flag, a variable, the file or the default.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, value_parser};

use super::file::{self, Entries};
use super::{Config, redacted};

/// The name of the flag that names the file.
const FILE: &str = "config";

/// The settings as the command line and the environment give them. They are not checked yet:
/// [`Settings::resolve`] does that.
pub struct Settings(Vec<Setting>);

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default: no source gives a value.
    Default,
    /// A flag, by its name.
    Flag(String),
    /// A variable, by its name.
    Variable(String),
    /// A line of the file.
    File(PathBuf, usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File(path, line) => write!(f, "file {} line {line}", path.display()),
        }
    }
}

/// A setting, its values and where they came from.
struct Setting {
    argument: Arg,
    values: Vec<OsString>,
    origin: Origin,
}

/// One line of `tollgate config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The name of the setting, as in the file.
    pub name: String,
    /// The value as the file would hold it, without secrets; `None` for a setting that has no
    /// value.
    pub value: Option<String>,
    /// The behaviour without a value.
    pub otherwise: String,
    /// The source of the value.
    pub origin: Origin,
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}  # {}", self.name, self.origin),
            None => write!(f, "# {}: {}  # {}", self.name, self.otherwise, self.origin),
        }
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug)]
pub struct InvalidConfig {
    /// The problems, one sentence for each.
    pub problems: Vec<String>,
}

impl std::error::Error for InvalidConfig {}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not valid:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Settings {
    /// Reads the file, if one is named, and checks everything. Also answers where each value came from, for `tollgate config`.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve(self) -> Result<(Config, Vec<Given>), InvalidConfig> {
        let named = self.0.iter().find(|setting| setting.name() == FILE);
        let Some((path, origin)) = named.and_then(|named| Some((named.values.first()?.clone(), named.origin.clone())))
        else {
            return self.over(Path::new(""), Entries::default());
        };
        let path = Path::new(&path);
        match std::fs::read_to_string(path) {
            Ok(text) => self.resolve_with_file(path, &text),
            Err(error) => {
                let problems = vec![format!("cannot read {} ({origin}): {error}", path.display())];
                self.over(path, Entries { problems, ..Entries::default() })
            }
        }
    }

    /// Resolves the settings as [`Settings::resolve`] does, with `text` as the content of the file
    /// at this path. Nothing is read.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn resolve_with_file(self, path: &Path, text: &str) -> Result<(Config, Vec<Given>), InvalidConfig> {
        let file = file::parse(path, text, &self.names());
        self.over(path, file)
    }

    /// The names that entries of the file may have.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(Setting::name).filter(|name| *name != FILE).map(str::to_owned).collect()
    }

    /// Puts what was given over the file, and both over the defaults.
    fn over(mut self, path: &Path, file: Entries) -> Result<(Config, Vec<Given>), InvalidConfig> {
        self.0.retain(|setting| setting.name() != FILE);
        for entry in file.entries {
            let found = self.0.iter_mut().find(|setting| setting.name() == entry.name);
            if let Some(setting) = found.filter(|setting| setting.origin == Origin::Default) {
                setting.values = entry.values.into_iter().map(OsString::from).collect();
                setting.origin = Origin::File(path.to_owned(), entry.line);
            }
        }
        let mut problems = file.problems;
        let mut bad = Vec::new();
        let mut flags = Vec::new();
        for setting in &self.0 {
            let Err(reason) = setting.check() else {
                flags.extend(setting.flags());
                continue;
            };
            bad.push(setting.name());
            let value = setting.shown().unwrap_or_else(|| "empty".to_owned());
            problems.push(format!("{} is {value} ({}): {reason}", setting.name(), setting.origin));
        }
        // Values that are invalid alone are left out, so that the contradictions among the others
        // are found.
        let command = Config::augment_args(silent(clap::Command::new("settings"))).mut_args(deaf);
        let config = command.try_get_matches_from(flags).and_then(|matches| Config::from_arg_matches(&matches));
        match config {
            Ok(config) => {
                let contradictions = config.contradictions().into_iter();
                let told = contradictions.filter(|found| !found.settings.iter().any(|name| bad.contains(name)));
                problems.extend(told.map(|found| found.problem));
                if problems.is_empty() {
                    return Ok((config, self.0.iter().map(Setting::given).collect()));
                }
            }
            // Each was checked, so this is about none of them by itself.
            Err(error) => problems.push(format!("the settings cannot be read: {}", error.kind())),
        }
        Err(InvalidConfig { problems })
    }
}

impl Setting {
    /// Finds the value of a setting in this command line and the environment.
    fn of(argument: Arg, matches: &ArgMatches) -> Self {
        let id = argument.get_id().as_str();
        let values: Vec<_> = matches.get_raw(id).into_iter().flatten().map(OsStr::to_owned).collect();
        let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (values, origin) = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => {
                (values, Origin::Flag(argument.get_long().unwrap_or_default().to_owned()))
            }
            // A variable that is empty is as one that is not set: manifests have it so where an optional value is missing.
            Some(ValueSource::EnvVariable) if values.iter().any(|value| !value.is_empty()) => {
                (values, Origin::Variable(variable))
            }
            _ => (
                argument.get_default_values().iter().map(|value| OsString::from(value.as_os_str())).collect(),
                Origin::Default,
            ),
        };
        Self { argument, values, origin }
    }

    fn name(&self) -> &str {
        self.argument.get_long().unwrap_or_default()
    }

    /// Flags that say the same.
    fn flags(&self) -> impl Iterator<Item = OsString> {
        self.values.iter().map(|value| {
            let mut flag = OsString::from(format!("--{}=", self.name()));
            flag.push(value);
            flag
        })
    }

    /// Checks that the values have the setting's type. The error says what to write.
    fn check(&self) -> Result<(), String> {
        if self.values.iter().any(|value| value.is_empty()) {
            return Err("leave it out, or give it a value".to_owned());
        }
        if self.values.len() > 1 && !matches!(self.argument.get_action(), ArgAction::Append) {
            return Err("write one value, not a list".to_owned());
        }
        let command = silent(clap::Command::new("setting")).arg(deaf(self.argument.clone()));
        let error = match command.try_get_matches_from(self.flags()) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        Err(match (error.source(), error.kind()) {
            (Some(reason), _) => reason.to_string(),
            (None, ErrorKind::InvalidUtf8) => "write UTF-8".to_owned(),
            (None, kind) => kind.to_string(),
        })
    }

    /// The value as it would stand in the file, without secrets.
    fn shown(&self) -> Option<String> {
        let secret = self.argument.is_hide_env_values_set();
        let show = |value: &OsString| redacted(&value.to_string_lossy(), secret);
        match self.argument.get_action() {
            ArgAction::Append if self.values.is_empty() => None,
            ArgAction::Append => Some(list(self.values.iter().map(show))),
            _ if self.values.len() > 1 => Some(list(self.values.iter().map(show))),
            _ => self.values.first().map(show).map(|value| {
                let bare = value.parse::<bool>().is_ok() || value.parse::<u32>().is_ok();
                if bare { value } else { quoted(&value) }
            }),
        }
    }

    fn given(&self) -> Given {
        let help = self.argument.get_help().map(ToString::to_string).unwrap_or_default();
        let otherwise = help.rsplit_once("[default: ").map_or("not set", |(_, rest)| rest.trim_end_matches(']'));
        Given {
            name: self.name().to_owned(),
            value: self.shown(),
            otherwise: otherwise.to_owned(),
            origin: self.origin.clone(),
        }
    }
}

fn list(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.map(|value| quoted(&value)).collect::<Vec<_>>().join(", "))
}

/// Quotes text as a string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Without program name, `--help` and `--version`.
fn silent(command: clap::Command) -> clap::Command {
    command.no_binary_name(true).disable_help_flag(true).disable_version_flag(true)
}

/// Without its variable.
fn deaf(argument: Arg) -> Arg {
    argument.env(None)
}

impl Default for Settings {
    fn default() -> Self {
        let command = Self::augment_args(silent(clap::Command::new("settings"))).mut_args(deaf);
        let matches = command.try_get_matches_from(std::iter::empty::<OsString>()).expect("no setting is required");
        Self::from_arg_matches(&matches).expect("any text is taken")
    }
}

/// Says nothing of the values: some are secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// The settings, and the flag that names the file.
fn arguments() -> impl Iterator<Item = Arg> {
    let file = Arg::new(FILE)
        .long(FILE)
        .env("TOLLGATE_CONFIG")
        .value_name("FILE")
        .help("A TOML file with any of these settings, named like the flags: listen = \"127.0.0.1:50051\"");
    let settings = Config::augment_args(clap::Command::new("settings"));
    std::iter::once(file).chain(settings.get_arguments().cloned().collect::<Vec<_>>())
}

impl Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        // Any text is taken: to stop at the first mistake would hide the others.
        command.args(arguments().map(|argument| argument.value_parser(value_parser!(OsString))))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(arguments().map(|argument| Setting::of(argument, matches)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
