//! `docs/operating/configuration.md`: the tables of settings and commands come from the program.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory as _};
use tollgate::config::Cli;

use super::{hold, page};
use crate::support::served::tollgate;

const PATH: &str = "docs/operating/configuration.md";

/// The settings of `tollgate serve`.
fn settings() -> Vec<Arg> {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").expect("there is `tollgate serve`");
    serve.get_arguments().filter(|argument| argument.get_long() != Some("help")).cloned().collect()
}

/// Text of the help as Markdown in a table: flags and file names as code.
fn markdown(help: &str) -> String {
    let coded = help.split_whitespace().map(|word| {
        let ends = |end: &char| word.ends_with(*end) && !word.ends_with("...");
        let bare = [',', ';', '.', ':', ')'].iter().find(|end| ends(end)).map_or(word, |_| &word[..word.len() - 1]);
        let is_code = bare.starts_with("--")
            || bare.contains("://")
            || (bare.len() > 1 && bare.contains('=') && !bare.contains('`'));
        if is_code { format!("`{bare}`{}", &word[bare.len()..]) } else { word.to_owned() }
    });
    coded.collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// One row of the table: the flag with its value, the default, and the help.
fn row(argument: &Arg) -> String {
    let name = argument.get_long().expect("a setting is a flag");
    let help = argument.get_help().expect("a setting has help").to_string().replace('\n', " ");
    let value = argument.get_value_names().map_or_else(String::new, |names| names.join(" "));
    let (help, otherwise) = match help.split_once("[default: ") {
        Some((help, otherwise)) => (help.trim(), markdown(otherwise.trim().trim_end_matches(']'))),
        None => {
            let default = argument.get_default_values().first().and_then(|value| value.to_str());
            (help.trim(), default.map_or_else(|| "none".to_owned(), |value| format!("`{value}`")))
        }
    };
    format!("| `--{name} {value}` | {otherwise} | {} |\n", markdown(help))
}

fn settings_table(names: &str) -> String {
    let settings = settings();
    let mut table = "| flag | default | meaning |\n|---|---|---|\n".to_owned();
    for name in names.split_whitespace() {
        let found = settings.iter().find(|argument| argument.get_long() == Some(name));
        table.push_str(&row(found.unwrap_or_else(|| panic!("{PATH} names the flag {name}, which does not exist"))));
    }
    table
}

/// The commands of the program, and of `tollgate keys`.
fn commands_table() -> String {
    fn rows(command: &Command, before: &str, table: &mut String) {
        for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
            let name = format!("{before} {}", one.get_name());
            if one.has_subcommands() {
                rows(one, &name, table);
            } else {
                let about = one.get_about().expect("a command says what it does").to_string().replace('\n', " ");
                table.push_str(&format!("| `{name}` | {} |\n", markdown(about.trim_end_matches('.'))));
            }
        }
    }
    let mut table = "| command | what it does |\n|---|---|\n".to_owned();
    rows(&Cli::command(), "tollgate", &mut table);
    table
}

/// The page with its tables made anew. A table stands between `<!-- flags: NAMES -->` or `<!-- commands -->` and `<!-- end -->`.
fn made_anew(page: &str) -> String {
    let mut made = String::new();
    let mut rest = page;
    while let Some(start) = rest.find("<!-- ") {
        let (before, marked) = rest.split_at(start);
        let (marker, after) = marked.split_once("-->\n").expect("a marker ends its line");
        let what = marker.trim_start_matches("<!-- ").trim();
        let table = match what.strip_prefix("flags: ") {
            Some(names) => settings_table(names),
            None if what == "commands" => commands_table(),
            None => panic!("{PATH} has the marker {what}"),
        };
        let (_, left) = after.split_once("<!-- end -->").expect("a table ends");
        made.push_str(&format!("{before}{marker}-->\n\n{table}\n<!-- end -->"));
        rest = left;
    }
    made + rest
}

#[test]
fn the_tables_of_settings_are_those_of_the_program() {
    hold(PATH, &made_anew(&page(PATH)));
}

#[test]
fn every_setting_is_in_one_table() {
    let page = page(PATH);
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `--")?.split([' ', '`']).next());
    // Another table has several flags in one cell.
    let listed: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("<!-- flags: "))
        .flat_map(|line| line.trim_end_matches("-->").split_whitespace())
        .collect();
    let names: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(names.len(), listed.len(), "a flag is in two tables");
    let settings = settings();
    let expected: BTreeSet<_> = settings.iter().filter_map(Arg::get_long).collect();
    assert!(expected.len() >= 30, "{expected:?}");
    assert_eq!(names, expected);
    let unknown: Vec<_> = rows.filter(|name| !expected.contains(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_configuration_of_the_page_is_shown_as_it_says() {
    let page = page(PATH);
    let block = |opening: &str| page.split(opening).nth(1).unwrap().split("\n```").next().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tollgate.toml"), block("```toml\n")).unwrap();
    let shown = block("```console\n$ TOLLGATE_LOG=warn tollgate ");
    let (arguments, lines) = shown.split_once('\n').unwrap();
    let mut command = tollgate();
    let output =
        command.args(arguments.split(' ')).env("TOLLGATE_LOG", "warn").current_dir(&directory).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let mut told = told.lines();
    for line in lines.lines().filter(|line| *line != "...") {
        assert!(told.any(|told| told == line), "{line}");
    }
    assert!(output.status.success());
}
