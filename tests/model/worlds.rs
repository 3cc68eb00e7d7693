//! Catalogs to try: plans, groups and rules, mostly alike in all plans and replicas, and sometimes in nothing.

use super::*;

pub fn settings(random: &mut Rng) -> Settings {
    let catalog = catalog(random);
    // The third replica has an edited catalog, sometimes the second another one; or each has a catalog of its own, of few groups that all
    // have the same ids.
    let catalogs = match random.u32(..8) {
        0 => (0..3).map(|_| crowded(random)).collect(),
        1..4 => vec![catalog.clone(), edited(random, &catalog), edited(random, &catalog)],
        _ => vec![catalog.clone(), catalog.clone(), edited(random, &catalog)],
    };
    Settings {
        catalogs,
        settlement_ms: pick(random, &[0, 1000, 60_000, 900_000, 5 * DAY]),
        replay_ms: pick(random, &[0, 1000, 60_000, 900_000, 5 * DAY]),
    }
}

/// Makes some quantities parts of others, and puts stars inside values: alike in all catalogs. Returns whether there are parts.
pub fn season(spice: &mut Rng, catalogs: &mut [Catalog]) -> bool {
    // Worlds that are about windows stay that.
    let is_crowded = catalogs[0].plans.iter().all(|plan| plan.groups.len() == 2);
    let (has_stars, has_parts) = (once_in(spice, 3), !once_in(spice, 3) && !is_crowded);
    let mut found = false;
    let parts =
        [("cached_tokens", "prompt_tokens"), ("completion_tokens", "prompt_tokens"), ("quantity", "cached_tokens")];
    let is_part = parts.map(|_| !once_in(spice, 4));
    let groups = catalogs.iter_mut().flat_map(|catalog| &mut catalog.plans).flat_map(|plan| &mut plan.groups);
    for rule in groups.flat_map(|group| &mut group.rules) {
        if let (true, Measure::Terms(terms)) = (has_parts, &mut rule.measure) {
            for ((part, whole), _) in parts.iter().zip(is_part).filter(|(_, is_part)| *is_part) {
                let has = |name: &str| terms.iter().position(|term| term.name == name);
                if let (Some(part), Some(_)) = (has(part), has(whole)) {
                    terms[part].part_of = Some((*whole).to_owned());
                }
            }
            // A catalog refuses defaults of parts that exceed that of their whole.
            while let Some(Unmeasured::Exceeded(_, parts)) = price::exceeded(terms, |term| {
                term.default.unwrap_or(if term.part_of.is_some() { 0 } else { LARGEST * MICRO })
            }) {
                terms.iter_mut().filter(|term| parts.contains(&term.name)).for_each(|term| term.part_of = None);
            }
            found |= terms.iter().any(|term| term.part_of.is_some());
        }
        let values = rule.conditions.iter_mut().flat_map(|(_, values)| values).filter(|_| has_stars);
        for value in values {
            *value = match value.as_str() {
                "openai" => "op*ai",
                "gpt-4o" => "*4o",
                "gpt-4o*" => "gpt*4o*",
                "gpt*" => "*pt*",
                other => other,
            }
            .to_owned();
        }
    }
    found
}

/// Puts thresholds into most groups, of each catalog and plan its own.
pub fn mark(random: &mut Rng, catalogs: &mut [Catalog]) {
    let groups = catalogs.iter_mut().flat_map(|catalog| &mut catalog.plans).flat_map(|plan| &mut plan.groups);
    for group in groups {
        let shares = [1, MICRO / 10, MICRO / 3, MICRO / 2, 4 * MICRO / 5, MICRO, 3 * MICRO / 2, 10 * MICRO];
        let amounts =
            [1, MICRO / 4, 3 * MICRO, 10 * MICRO, 25 * MICRO, 100 * MICRO, 400 * MICRO, 8_000_000_000 * MICRO];
        let mut some = |of: [u128; 8], threshold: fn(u128) -> Threshold| {
            let all = if once_in(random, 3) { 0 } else { random.usize(1..=4) };
            let mut some: Vec<_> = (0..all).map(|_| pick(random, &of)).collect();
            some.sort_unstable();
            some.dedup();
            // The two smallest are the same amount where a unit has no parts.
            if some.len() > 1 && threshold(0) == Threshold::Amount(0) && some[1] < MICRO {
                some.remove(0);
            }
            some.into_iter().map(threshold).collect::<Vec<_>>()
        };
        let shares = some(shares, Threshold::Share);
        group.thresholds = some(amounts, Threshold::Amount).into_iter().chain(shares).collect();
    }
}

/// Lets groups be for some models only: those of one id alike in all plans and catalogs.
pub fn ask_for_models(random: &mut Rng, catalogs: &mut [Catalog]) {
    const MODELS: [&[&str]; 6] =
        [&["gpt-4o"], &["claude"], &["gpt*"], &["gpt*", "openai"], &["claude", "openai"], &["gpt-4o-mini", "openai"]];
    let mut of_ids = BTreeMap::new();
    let groups = catalogs.iter_mut().flat_map(|catalog| &mut catalog.plans).flat_map(|plan| &mut plan.groups);
    for group in groups {
        let drawn = (!once_in(random, 3)).then(|| pick(random, &MODELS));
        let values = of_ids.entry(group.id.clone()).or_insert(drawn);
        // All of its rules, so that each is reached as before.
        let asks = |rule: &Rule| rule.conditions.iter().any(|(key, _)| key == "model");
        if let Some(values) = values
            && !group.rules.iter().any(asks)
        {
            let values: Vec<_> = values.iter().map(|value| (*value).to_owned()).collect();
            group.rules.iter_mut().for_each(|rule| rule.conditions.push(("model".to_owned(), values.clone())));
        }
    }
}

/// Mostly makes wholes as large as they have to be.
pub fn nest(spice: &mut Rng, quantities: &mut BTreeMap<String, u128>) {
    if once_in(spice, 4) {
        return;
    }
    let of = |quantities: &BTreeMap<String, u128>, name: &str| quantities.get(name).copied().unwrap_or_default();
    for (whole, parts) in
        [("cached_tokens", &["quantity"][..]), ("prompt_tokens", &["cached_tokens", "completion_tokens"])]
    {
        let contained: u128 = parts.iter().map(|part| of(quantities, part)).sum();
        if let Some(there) = quantities.get_mut(whole).filter(|there| **there + contained <= 8_000_000_000 * MICRO) {
            *there += contained;
        }
    }
}

pub fn catalog(random: &mut Rng) -> Catalog {
    // Groups of equal id are mostly alike in all plans, but not always.
    let count = if once_in(random, 12) { 24 } else { random.usize(1..=GROUPS.len()) };
    let ids: Vec<_> = (0..count).map(|index| format!("g{index}")).collect();
    let alike: Vec<_> = ids.iter().map(|id| group(random, id)).collect();
    let plan = |random: &mut Rng, id: &str| {
        let mut groups: Vec<Group> = Vec::new();
        for group in &alike {
            if once_in(random, 5) && !(groups.is_empty() && group.id == alike[count - 1].id) {
                continue;
            }
            let mut own = if once_in(random, 5) { self::group(random, &group.id) } else { group.clone() };
            own.quota = quota(random, own.unit);
            groups.push(own);
        }
        let change = pick(random, &["carry", "reset", "block"]);
        Plan { id: id.to_owned(), zone: pick(random, &ZONES), change, groups }
    };
    let plans = PLANS.iter().map(|id| plan(random, id)).collect();
    let default_plan = (!once_in(random, 5)).then(|| "free".to_owned());
    Catalog { default_plan, plans }
}

/// Plans in which the groups of one id have nothing in common, so that their windows are many.
pub fn crowded(random: &mut Rng) -> Catalog {
    let mut catalog = catalog(random);
    let (day, week) = (Period::Length(1440), Period::Length(10_080));
    let long = [Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly, Period::Lifetime, day, week];
    for plan in &mut catalog.plans {
        plan.groups = GROUPS[..2].iter().map(|id| group(random, id)).collect();
        for group in &mut plan.groups {
            if once_in(random, 4) {
                continue;
            }
            group.period = pick(random, &long);
            fit_anchor(random, group);
            group.rules = vec![Rule { pattern: "*".to_owned(), conditions: Vec::new(), measure: Measure::Events }];
        }
    }
    catalog
}

/// Another price list: groups and a plan may be gone, and everything of a group may differ. Another unit, period or anchor makes another
/// window.
pub fn edited(random: &mut Rng, catalog: &Catalog) -> Catalog {
    let mut catalog = catalog.clone();
    if once_in(random, 3) {
        catalog.plans.remove(2);
    }
    for plan in &mut catalog.plans {
        if plan.groups.len() > 1 && once_in(random, 3) {
            plan.groups.pop();
        }
        for group in &mut plan.groups {
            if once_in(random, 2) {
                group.label = "Edited".to_owned();
                if once_in(random, 4) {
                    group.unit = pick(random, &UNITS);
                }
                if once_in(random, 3) {
                    group.period = period(random);
                }
                if once_in(random, 3) {
                    group.anchor = anchor(random);
                }
                if once_in(random, 6) {
                    group.hard = !group.hard;
                }
                if once_in(random, 2) {
                    group.rules = rules(random);
                }
                group.quota = quota(random, group.unit);
                fit_anchor(random, group);
            }
        }
    }
    catalog
}

/// Mostly of the calendar. Some lengths are near each other, and one is a day.
pub fn period(random: &mut Rng) -> Period {
    if once_in(random, 5) {
        Period::Length(pick(random, &[1, 90, 300, 301, 1440, 10_080]))
    } else {
        pick(random, &PERIODS)
    }
}

pub fn anchor(random: &mut Rng) -> Anchor {
    match random.u32(..6) {
        0 | 1 => Anchor::SubscriptionStart,
        2 => Anchor::FirstUse,
        _ => Anchor::Calendar,
    }
}

/// A catalog refuses windows of a given length that follow the calendar.
pub fn fit_anchor(random: &mut Rng, group: &mut Group) {
    if matches!(group.period, Period::Length(_)) && group.anchor == Anchor::Calendar {
        group.anchor = pick(random, &[Anchor::SubscriptionStart, Anchor::FirstUse]);
    }
}

pub fn group(random: &mut Rng, id: &str) -> Group {
    let unit = pick(random, &UNITS);
    let mut group = Group {
        id: id.to_owned(),
        label: format!("Group {id}"),
        unit,
        quota: quota(random, unit),
        hard: !once_in(random, 4),
        period: period(random),
        anchor: anchor(random),
        thresholds: Vec::new(),
        rules: rules(random),
    };
    fit_anchor(random, &mut group);
    group
}

pub fn quota(random: &mut Rng, unit: Unit) -> Option<u128> {
    match random.u32(..12) {
        0 | 1 => None,
        2 if once_in(random, 2) => Some(0),
        // A number above 8x10^9 is whole.
        3 if once_in(random, 2) => Some(unit.most() / unit.scale() * unit.scale()),
        11 => Some(random.u128(1..1000)),
        2..7 => Some(random.u128(5..200) * unit.scale()),
        _ => Some(random.u128(200..2000) * unit.scale()),
    }
}

/// Rules that a catalog accepts: it refuses one that is never reached.
pub fn rules(random: &mut Rng) -> Vec<Rule> {
    loop {
        let count = random.usize(1..=3);
        let rules: Vec<_> = (0..count).map(|_| rule(random)).collect();
        let group = Group {
            id: "g".to_owned(),
            label: "G".to_owned(),
            unit: Unit::Count,
            quota: None,
            hard: true,
            period: Period::Daily,
            anchor: Anchor::Calendar,
            thresholds: Vec::new(),
            rules,
        };
        let plan = Plan { id: "p".to_owned(), zone: "UTC", change: "carry", groups: vec![group.clone()] };
        let catalog = Catalog { default_plan: None, plans: vec![plan] };
        if tollgate::catalog::parse(&catalog.yaml(), jiff::tz::db()).is_ok() {
            return group.rules;
        }
    }
}

pub fn rule(random: &mut Rng) -> Rule {
    let mut conditions = Vec::new();
    for key in KEYS {
        if once_in(random, 9) {
            let mut values: Vec<_> = (0..random.usize(1..=2)).map(|_| pick(random, &WANTED).to_owned()).collect();
            values.sort();
            values.dedup();
            conditions.push((key.to_owned(), values));
        }
    }
    let measure = match random.u32(..4) {
        0 => Measure::Events,
        1 => Measure::Terms(vec![term(random, "quantity", PICO)]),
        _ => {
            let mut names = QUANTITIES.to_vec();
            random.shuffle(&mut names);
            names.truncate(random.usize(1..=3));
            let weights = [PICO, PICO, 2 * PICO, PICO / 2, PICO / 10, PICO / 4000, PICO / 1000, 1, 0, 1_000_000 * PICO];
            let odd = random.u128(1..3 * PICO);
            let term = |name: &&str| {
                let weight = if once_in(random, 6) { odd } else { pick(random, &weights) };
                self::term(random, name, weight)
            };
            Measure::Terms(names.iter().map(term).collect())
        }
    };
    Rule { pattern: pick(random, &PATTERNS).to_owned(), conditions, measure }
}

pub fn term(random: &mut Rng, name: &str, weight: u128) -> Term {
    let default = once_in(random, 4).then(|| pick(random, &[0, MICRO, MICRO / 2, 7 * MICRO]));
    Term { name: name.to_owned(), weight, default, part_of: None }
}
