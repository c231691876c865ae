{{/* Labels of an object; the argument is a list of the context and the component. */}}
{{- define "calico-vni.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: calico-vni
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
{{- end }}

{{/* Labels by which pods are found. They hold no version: a selector cannot change. */}}
{{- define "calico-vni.selector" -}}
app.kubernetes.io/name: calico-vni
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* An image's name; the argument is a list of the context and the image's values. */}}
{{- define "calico-vni.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What agent and FRR have in common: to which nodes their pods go, and the like. */}}
{{- define "calico-vni.onEachNode" -}}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.router.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.router.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.router.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.router.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
{{- end }}
