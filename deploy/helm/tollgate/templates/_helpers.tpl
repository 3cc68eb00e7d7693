{{/* The name of the chart, or what replaces it. */}}
{{- define "tollgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of all objects. */}}
{{- define "tollgate.fullname" -}}
{{- $name := include "tollgate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels by which objects find the pods. They must never change: a Deployment cannot change its selector. */}}
{{- define "tollgate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tollgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of all objects. */}}
{{- define "tollgate.labels" -}}
{{ include "tollgate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object with the name of all objects. */}}
{{- define "tollgate.metadata" -}}
name: {{ include "tollgate.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "tollgate.labels" . | nindent 2 }}
{{- end -}}

{{- define "tollgate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tollgate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tollgate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tollgate.catalogConfigMap" -}}
{{- default (printf "%s-catalog" (include "tollgate.fullname" .)) .Values.catalog.existingConfigMap -}}
{{- end -}}

{{/* The file of the catalog, or the folder with one for each app. */}}
{{- define "tollgate.catalogPath" -}}
{{- if .Values.catalog.existingConfigMap -}}
{{- printf "/etc/tollgate/catalog/%s" .Values.catalog.existingConfigMapKey | trimSuffix "/" -}}
{{- else if .Values.catalog.perApp -}}
/etc/tollgate/catalog
{{- else -}}
/etc/tollgate/catalog/catalog.yaml
{{- end -}}
{{- end -}}

{{/* A setting as text. Helm reads numbers of files as floats, and would write 1000000 as 1e+06. */}}
{{- define "tollgate.settingText" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Refuses values that contradict each other, with what to do. Everything else is for values.schema.json. */}}
{{- define "tollgate.check" -}}
{{- if not (or .Values.access.apiKeys .Values.tls.clientCa.existingSecret .Values.access.allowAnonymous) -}}
{{- fail "Nobody may call: set access.apiKeys, tls.clientCa.existingSecret or access.allowAnonymous" -}}
{{- end -}}
{{- if and .Values.tls.clientCa.existingSecret (not .Values.tls.enabled) -}}
{{- fail "tls.clientCa.existingSecret asks for client certificates, so it needs tls.enabled" -}}
{{- end -}}
{{- if and .Values.tls.clientApps (not .Values.tls.clientCa.existingSecret) -}}
{{- fail "tls.clientApps maps client certificates, so it needs tls.clientCa.existingSecret" -}}
{{- end -}}
{{- if ne (empty .Values.redis.certKey) (empty .Values.redis.keyKey) -}}
{{- fail "redis.certKey and redis.keyKey belong together: set both or neither" -}}
{{- end -}}
{{- if and .Values.envoy.entries (not .Values.envoy.enabled) -}}
{{- fail "envoy.entries needs envoy.enabled" -}}
{{- end -}}
{{- end -}}
