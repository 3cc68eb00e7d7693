//! The plans of each app. They can be replaced while calls are served.

pub mod files;
pub mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::counted::counted;
use crate::domain::fault::Fault;
use crate::domain::id::AppId;
use crate::domain::plan::Catalog;
use crate::ledger::Ledger;
use crate::meter::{Meter, MeterOptions};
use crate::telemetry::metrics;

/// The catalogs of a deployment.
#[derive(Debug, Clone)]
pub enum Catalogs {
    /// Every app has these plans. Users and reservations are each app's own all the same.
    Shared(Arc<Catalog>),
    /// Each app has its own plans.
    PerApp(BTreeMap<AppId, Arc<Catalog>>),
}

impl Catalogs {
    /// Returns the number of plans, over all apps.
    #[must_use]
    pub fn plans(&self) -> usize {
        match self {
            Self::Shared(catalog) => catalog.plans().len(),
            Self::PerApp(catalogs) => catalogs.values().map(|catalog| catalog.plans().len()).sum(),
        }
    }

    /// Returns the number of limit groups in all these plans.
    #[must_use]
    pub fn limit_groups(&self) -> usize {
        let of = |catalog: &Catalog| catalog.plans().iter().map(|plan| plan.groups.len()).sum::<usize>();
        match self {
            Self::Shared(catalog) => of(catalog),
            Self::PerApp(catalogs) => catalogs.values().map(|catalog| of(catalog)).sum(),
        }
    }

    /// Returns whether this app has plans.
    #[must_use]
    pub fn have(&self, app: &AppId) -> bool {
        match self {
            Self::Shared(_) => true,
            Self::PerApp(catalogs) => catalogs.contains_key(app),
        }
    }
}

impl fmt::Display for Catalogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = |catalog: &Catalog| catalog.plans().iter().map(|plan| plan.groups.len()).sum::<usize>();
        match self {
            Self::Shared(catalog) => {
                let (plans, groups) = (counted(catalog.plans().len(), "plan"), counted(groups(catalog), "limit group"));
                write!(f, "{plans}, {groups}")
            }
            Self::PerApp(catalogs) => {
                let groups: usize = catalogs.values().map(|catalog| groups(catalog)).sum();
                let (apps, plans) = (counted(catalogs.len(), "app"), counted(self.plans(), "plan"));
                write!(f, "{apps}, {plans}, {}", counted(groups, "limit group"))
            }
        }
    }
}

/// The meter of each app.
pub struct Apps {
    /// The meter that the others are made from. They share its knowledge of users and of Redis's clock.
    base: Meter,
    meters: RwLock<Meters>,
}

enum Meters {
    Shared(Arc<Meter>),
    PerApp(BTreeMap<AppId, Arc<Meter>>),
}

impl Apps {
    /// Meters by `catalogs`, over one ledger.
    #[must_use]
    pub fn new(catalogs: Catalogs, ledger: Ledger, options: MeterOptions) -> Self {
        let any = match &catalogs {
            Catalogs::Shared(catalog) => Some(catalog),
            Catalogs::PerApp(catalogs) => catalogs.values().next(),
        };
        let base = Meter::new(any.cloned().unwrap_or_default(), ledger, options);
        let meters = RwLock::new(meters(&base, catalogs));
        Self { base, meters }
    }

    /// The ledger of all.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.base.ledger
    }

    /// The meter for calls of an app. A call keeps it to its end, whatever is loaded meanwhile.
    ///
    /// # Errors
    /// [`Fault::AppUnknown`].
    pub fn meter(&self, app: &AppId) -> Result<Arc<Meter>, Fault> {
        let meters = self.meters.read().unwrap_or_else(PoisonError::into_inner);
        let meter = match &*meters {
            Meters::Shared(meter) => Some(meter),
            Meters::PerApp(meters) => meters.get(app),
        };
        meter.map(Arc::clone).ok_or_else(|| Fault::AppUnknown(app.as_str().to_owned()))
    }

    /// Meters calls by these catalogs from now on. Holds and open windows stay as they were written (SELF-CONTAINED).
    /// Returns the plans that are gone: `plan`, or `app/plan`.
    pub fn replace(&self, catalogs: Catalogs) -> Vec<String> {
        let new = meters(&self.base, catalogs);
        let kept = new.plans();
        let mut meters = self.meters.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *meters, new);
        drop(meters);
        before.plans().into_iter().filter(|plan| !kept.contains(plan)).collect()
    }
}

impl Meters {
    fn plans(&self) -> BTreeSet<String> {
        match self {
            Self::Shared(meter) => meter.catalog().plans().iter().map(|plan| plan.id.clone()).collect(),
            Self::PerApp(meters) => {
                let plans = |(app, meter): (&AppId, &Arc<Meter>)| {
                    let named: Vec<_> =
                        meter.catalog().plans().iter().map(|plan| format!("{app}/{}", plan.id)).collect();
                    named
                };
                meters.iter().flat_map(plans).collect()
            }
        }
    }
}

fn meters(base: &Meter, catalogs: Catalogs) -> Meters {
    metrics().catalog_loaded(catalogs.plans(), catalogs.limit_groups());
    let meter = |catalog| Arc::new(base.with_catalog(catalog));
    match catalogs {
        Catalogs::Shared(catalog) => Meters::Shared(meter(catalog)),
        Catalogs::PerApp(catalogs) => {
            Meters::PerApp(catalogs.into_iter().map(|(app, catalog)| (app, meter(catalog))).collect())
        }
    }
}
