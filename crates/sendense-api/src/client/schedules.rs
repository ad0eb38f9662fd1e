//! Calls about policies, schedules and executions.

use super::{Client, ClientError};
use crate::reply::{
    DoneReply, ExecutionListReply, ExecutionReply, PolicyDeletionReply, PolicyListReply, PolicyPlanReply, PolicyReply,
    PreviewReply, PrunesReply, ScheduleListReply, ScheduleReply,
};
use crate::{
    Execution, ListQuery, Occurrence, Page, Policy, PolicyDeletion, PolicyPlan, PolicyPrune, PolicyRules, PreviewQuery,
    PruneQuery, Schedule, ScheduleRules,
};
use reqwest::Method;
use sendense_types::ExecutionId;

type Result<T> = std::result::Result<T, ClientError>;

/// Policies.
impl Client {
    /// Makes a policy.
    pub async fn create_policy(&self, rules: &PolicyRules) -> Result<Policy> {
        Ok(self.send::<_, PolicyReply>(Method::POST, &["policies"], rules).await?.policy)
    }

    /// Lists policies by name.
    pub async fn list_policies(&self, page: &ListQuery) -> Result<Page<Policy>> {
        Ok(self.get::<_, PolicyListReply>(&["policies"], page).await?.into())
    }

    /// One policy, by id or name.
    pub async fn get_policy(&self, policy: &str) -> Result<Policy> {
        Ok(self.get::<_, PolicyReply>(&["policies", policy], &()).await?.policy)
    }

    /// Lets a policy say something else.
    pub async fn replace_policy(&self, policy: &str, rules: &PolicyRules) -> Result<Policy> {
        Ok(self.send::<_, PolicyReply>(Method::PUT, &["policies", policy], rules).await?.policy)
    }

    /// Forgets a policy.
    pub async fn delete_policy(&self, policy: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["policies", policy], &()).await.map(drop)
    }

    /// What a policy would do that is not saved.
    pub async fn plan_policy(&self, rules: &PolicyRules) -> Result<PolicyPlan> {
        Ok(self.send::<_, PolicyPlanReply>(Method::POST, &["policies", "plan"], rules).await?.plan)
    }

    /// What a policy would do now.
    pub async fn plan_of_policy(&self, policy: &str) -> Result<PolicyPlan> {
        Ok(self.get::<_, PolicyPlanReply>(&["policies", policy, "plan"], &()).await?.plan)
    }

    /// What would become of VMs and points if a policy were forgotten.
    pub async fn plan_policy_deletion(&self, policy: &str) -> Result<PolicyDeletion> {
        Ok(self.get::<_, PolicyDeletionReply>(&["policies", policy, "deletion"], &()).await?.deletion)
    }

    /// Deletes what the policy's retention keeps no more, or shows it.
    pub async fn prune_policy(&self, policy: &str, how: &PruneQuery) -> Result<PolicyPrune> {
        let call = self.call(Method::POST, &["policies", policy, "prune"]).query(how);
        Ok(self.finish::<PrunesReply>(call).await?.payload)
    }
}

/// Schedules.
impl Client {
    /// Makes a schedule.
    pub async fn create_schedule(&self, rules: &ScheduleRules) -> Result<Schedule> {
        Ok(self.send::<_, ScheduleReply>(Method::POST, &["schedules"], rules).await?.schedule)
    }

    /// Lists schedules by name.
    pub async fn list_schedules(&self, page: &ListQuery) -> Result<Page<Schedule>> {
        Ok(self.get::<_, ScheduleListReply>(&["schedules"], page).await?.into())
    }

    /// One schedule, by id or name.
    pub async fn get_schedule(&self, schedule: &str) -> Result<Schedule> {
        Ok(self.get::<_, ScheduleReply>(&["schedules", schedule], &()).await?.schedule)
    }

    /// Lets a schedule say something else.
    pub async fn replace_schedule(&self, schedule: &str, rules: &ScheduleRules) -> Result<Schedule> {
        Ok(self.send::<_, ScheduleReply>(Method::PUT, &["schedules", schedule], rules).await?.schedule)
    }

    /// Forgets a schedule.
    pub async fn delete_schedule(&self, schedule: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["schedules", schedule], &()).await.map(drop)
    }

    /// The occurrences to come.
    pub async fn preview_schedule(&self, schedule: &str, how: &PreviewQuery) -> Result<Vec<Occurrence>> {
        Ok(self.get::<_, PreviewReply>(&["schedules", schedule, "preview"], how).await?.occurrences)
    }

    /// Lets a schedule begin by itself, or not.
    pub async fn enable_schedule(&self, schedule: &str, enabled: bool) -> Result<Schedule> {
        let verb = if enabled { "enable" } else { "disable" };
        Ok(self.post::<ScheduleReply>(&["schedules", schedule, verb]).await?.schedule)
    }

    /// Carries the schedule's policy out now.
    pub async fn trigger_schedule(&self, schedule: &str) -> Result<Execution> {
        Ok(self.post::<ExecutionReply>(&["schedules", schedule, "trigger"]).await?.execution)
    }

    /// Executions of a schedule, newest first.
    pub async fn list_executions(&self, schedule: &str, page: &ListQuery) -> Result<Page<Execution>> {
        Ok(self.get::<_, ExecutionListReply>(&["schedules", schedule, "executions"], page).await?.into())
    }

    /// One execution with its VMs.
    pub async fn get_execution(&self, execution_id: &ExecutionId) -> Result<Execution> {
        Ok(self.get::<_, ExecutionReply>(&["executions", execution_id.as_str()], &()).await?.execution)
    }
}
