//! How counted figures are held against the committed ones: the pure part of `./dev counts`.

#[path = "../../benches/counts/figures.rs"]
#[allow(dead_code)]
mod figures;

use figures::{Commands, Figure, Figures, TakenWith, compare, median};

fn figures() -> Figures {
    let figure = |server, ratio: f64, commands: &[(&str, f64)]| Figure {
        server,
        redis: (ratio * 10_000.0) as u64,
        ratio,
        commands: commands.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
    };
    Figures {
        taken_with: TakenWith {
            rustc: "rustc 1.95.0".to_owned(),
            redis: "Redis server 7.0.15".to_owned(),
            libc: "glibc 2.36".to_owned(),
            valgrind: "valgrind-3.19.0".to_owned(),
            processor: "x86_64".to_owned(),
        },
        empty_script: 10_000,
        cases: vec![
            ("reserve, denied".to_owned(), figure(200_000, 12.5, &[("evalsha", 1.0), ("mget", 1.0), ("time", 1.0)])),
            ("track".to_owned(), figure(150_000, 10.25, &[("evalsha", 1.0), ("config|get", 0.5)])),
        ],
    }
}

/// Counted now, with something changed in the first case.
fn changed(change: impl FnOnce(&mut Figure)) -> Figures {
    let mut now = figures();
    change(&mut now.cases[0].1);
    now
}

#[test]
fn committed_figures_are_read_as_they_were_written() {
    assert_eq!(Figures::parse(&figures().to_toml()).unwrap(), figures());
    let committed = include_str!("../../benches/counts.toml");
    assert!(!Figures::parse(committed).unwrap().cases.is_empty());
}

#[test]
fn equal_figures_and_small_changes_pass() {
    for server in [192_500, 200_000, 207_900] {
        let comparison = compare(&figures(), &changed(|figure| figure.server = server));
        assert!(!comparison.is_worse() && !comparison.is_better(), "{comparison}");
    }
    for ratio in [11.9, 12.5, 13.1] {
        let comparison = compare(&figures(), &changed(|figure| figure.ratio = ratio));
        assert!(!comparison.is_worse() && !comparison.is_better(), "{comparison}");
    }
}

#[test]
fn growth_above_the_tolerance_fails_and_says_how_to_accept_it() {
    let server = compare(&figures(), &changed(|figure| figure.server = 208_100));
    let redis = compare(&figures(), &changed(|figure| figure.ratio = 13.2));
    for comparison in [server, redis] {
        let told = comparison.to_string();
        assert!(comparison.is_worse() && told.contains("WORSE: reserve, denied"), "{told}");
        assert!(told.contains("./dev counts --accept"), "{told}");
    }
}

#[test]
fn a_gain_above_the_tolerance_passes_and_asks_to_be_accepted() {
    let comparison = compare(&figures(), &changed(|figure| figure.server = 150_000));
    assert!(!comparison.is_worse() && comparison.is_better());
    assert!(comparison.to_string().contains("./dev counts --accept"), "{comparison}");
}

#[test]
fn any_other_redis_command_fails_even_one_less() {
    let changes: [fn(&mut Commands); 3] = [
        |commands| {
            commands.insert("time".to_owned(), 2.0);
        },
        |commands| {
            commands.insert("get".to_owned(), 1.0);
        },
        |commands| {
            commands.remove("mget");
        },
    ];
    for change in changes {
        let comparison = compare(&figures(), &changed(|figure| change(&mut figure.commands)));
        assert!(comparison.is_worse() && comparison.to_string().contains(" -> "), "{comparison}");
    }
}

#[test]
fn figures_taken_with_other_tools_are_held_to_less_and_it_says_so() {
    let grown = |tools: fn(&mut TakenWith)| {
        let mut now = changed(|figure| (figure.server, figure.ratio) = (230_000, 14.5));
        tools(&mut now.taken_with);
        compare(&figures(), &now)
    };
    let told = |tools| grown(tools).to_string();
    let rustc = told(|tools| tools.rustc = "rustc 1.96.0".to_owned());
    assert!(rustc.contains("rustc 1.96.0"), "{rustc}");
    assert!(
        !rustc.contains("the server's instructions grew") && rustc.contains("Redis's instructions grew"),
        "{rustc}"
    );
    let redis = told(|tools| tools.redis = "Redis server 8.2.0".to_owned());
    assert!(
        redis.contains("the server's instructions grew") && !redis.contains("Redis's instructions grew"),
        "{redis}"
    );
    assert!(!grown(|tools| tools.libc = "glibc 2.41".to_owned()).is_worse());
    assert!(!grown(|tools| tools.valgrind = "valgrind-3.25.0".to_owned()).is_worse());
    assert!(!grown(|tools| tools.processor = "aarch64".to_owned()).is_worse());

    // Not to nothing, and not in what does not depend on tools.
    let mut now = changed(|figure| figure.server = 300_000);
    now.taken_with.rustc = "rustc 1.96.0".to_owned();
    assert!(compare(&figures(), &now).is_worse());
    let mut now = changed(|figure| {
        figure.commands.insert("get".to_owned(), 1.0);
    });
    now.taken_with.redis = "Redis server 8.2.0".to_owned();
    assert!(compare(&figures(), &now).is_worse());
}

#[test]
fn a_case_without_figures_fails_and_so_do_figures_without_a_case() {
    let mut fewer = figures();
    fewer.cases.pop();
    for comparison in [compare(&fewer, &figures()), compare(&figures(), &fewer)] {
        assert!(comparison.is_worse() && comparison.to_string().contains("WORSE: track"), "{comparison}");
    }
}

#[test]
fn the_median_is_not_moved_by_what_is_out_of_line() {
    assert_eq!(median(&mut [5.0, 1.0, 900.0, 3.0, 4.0]), 4.0);
}
