{{- define "quarry.labels" -}}
app.kubernetes.io/name: quarry
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "quarry.selector" -}}
app.kubernetes.io/name: quarry
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "quarry.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "quarry.sidecarImage" -}}
{{ .root.Values.sidecars.registry }}/{{ .name }}:{{ .version }}
{{- end }}

{{/* What is not root and needs nothing of the kernel. */}}
{{- define "quarry.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "quarry.podEnv" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}

{{/* Flags that all sidecars of the controller share. No leader election of their own: docs/decisions/0008. */}}
{{- define "quarry.sidecarArgs" -}}
- --csi-address=/csi/csi.sock
- --leader-election=false
- --kube-api-qps={{ .Values.sidecars.kubeApiQps }}
- --kube-api-burst={{ .Values.sidecars.kubeApiBurst }}
- --timeout=60s
{{- end }}

{{/* A sidecar of the controller: root, name (its image), version, args (a list). */}}
{{- define "quarry.sidecar" -}}
- name: {{ .name }}
  image: {{ include "quarry.sidecarImage" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- include "quarry.sidecarArgs" .root | nindent 4 }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
  env:
    {{- include "quarry.podEnv" .root | nindent 4 }}
  securityContext:
    {{- include "quarry.unprivileged" .root | nindent 4 }}
  resources:
    {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
  volumeMounts:
    - name: csi
      mountPath: /csi
{{- end }}
