/**
 * As much of ComfyUI's front end as the scripts of this pack use, for the type checker alone (`tsc -p .`). The host
 * loads every `.js` file of this folder and no `.d.ts`. Optional is what some of the supported versions lack.
 */

interface HostWidget {
  name: string;
  value: unknown;
  label?: string;
  disabled?: boolean;
  hidden?: boolean;
  tooltip?: string;
  serialize?: boolean;
  element?: HTMLElement;
  options?: { getOptionLabel?: (value: string | null) => string; advanced?: boolean; canvasOnly?: boolean };
  callback?: (value: unknown) => void;
}

interface HostInput {
  name: string;
  link: number | null;
  widget?: { name: string };
}

/** Called by the host with arguments that are passed on as they are. */
type HostHook = (...args: unknown[]) => unknown;

interface HostDOMOptions {
  serialize: boolean;
  hideOnZoom: boolean;
  getMinHeight: () => number;
  getMaxHeight?: () => number;
}

interface HostNode {
  id: number | string;
  type: string;
  title?: string;
  comfyClass?: string;
  pos: [number, number];
  size: [number, number];
  graph?: HostGraph | null;
  mode?: number;
  flags?: { collapsed?: boolean };
  widgets?: HostWidget[];
  inputs?: HostInput[];
  subgraph?: HostGraph;
  showAdvanced?: boolean;
  findInputSlot(name: string): number;
  getInputLink(slot: number): { origin_id: number | string; origin_slot: number } | null;
  getInputNode(slot: number): HostNode | null;
  connect(slot: number, target: HostNode, input: string): unknown;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas(foreground: boolean, background: boolean): void;
  addWidget?(type: string, name: string, value: unknown, callback: () => void): HostWidget;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: HostDOMOptions): HostWidget;
  onConnectionsChange?: HostHook;
  onConfigure?: HostHook;
  onRemoved?: HostHook;
}

interface HostGraph {
  id?: string;
  nodes: HostNode[];
  extra?: Record<string, any> & { ds?: { scale: number; offset: [number, number] } };
  getNodeById(id: number | string): HostNode | null | undefined;
  add(node: HostNode): unknown;
}

interface HostCanvas {
  graph: HostGraph;
  canvas: HTMLCanvasElement;
  default_connection_color_byType?: Record<string, string>;
  ds: { scale: number; offset: [number, number]; visible_area: [number, number, number, number] };
  emitBeforeChange(): void;
  emitAfterChange(): void;
  selectItems(nodes: HostNode[]): void;
  setDirty(foreground: boolean, background: boolean): void;
}

interface HostExtension {
  name: string;
  init?(): void | Promise<void>;
  setup?(): void | Promise<void>;
  nodeCreated?(node: HostNode): void;
  afterConfigureGraph?(): void | Promise<void>;
}

interface HostToast {
  severity: "success" | "error";
  summary: string;
  detail: string;
  life: number;
}

interface HostSidebarTab {
  id: string;
  icon: string;
  title: string;
  tooltip: string;
  type: "custom";
  render(place: HTMLElement): void;
  destroy(): void;
}

interface HostManager {
  toast: { add(message: HostToast): void };
  dialog: {
    confirm(options: { title: string; message: string; type: string; itemList: string[] }): Promise<boolean | null>;
  };
  setting: { get(id: string): unknown };
  registerSidebarTab(tab: HostSidebarTab): void;
}

/** What the events that the pack listens to carry. */
interface HostEvents {
  "rollout_trainer.progress": import("./panel.js").Facts & { workflow?: string; node: string };
  executed: {
    node: string;
    display_node?: string;
    output?: { rollout_trainer?: Omit<import("./panel.js").Facts, "state">[]; text?: unknown };
  };
  execution_success: { prompt_id: string };
  execution_error: { prompt_id: string; node_id: string; node_type?: string; exception_message?: string };
  execution_interrupted: { prompt_id: string; node_id: string };
  graphChanged: unknown;
}

interface HostApi {
  fetchApi(route: string, options?: RequestInit): Promise<Response>;
  apiURL(route: string): string;
  interrupt(promptId: string | null): Promise<void>;
  addEventListener<K extends keyof HostEvents>(name: K, listener: (event: CustomEvent<HostEvents[K]>) => void): void;
  removeEventListener<K extends keyof HostEvents>(name: K, listener: (event: CustomEvent<HostEvents[K]>) => void): void;
}

declare const LiteGraph: {
  vueNodesMode?: boolean;
  createNode(type: string): HostNode;
  LGraphCanvas?: { link_type_colors?: Record<string, string> };
};

declare module "*/scripts/app.js" {
  export const app: {
    graph: HostGraph;
    rootGraph?: HostGraph;
    canvas: HostCanvas;
    extensionManager: HostManager;
    registerExtension(extension: HostExtension): void;
    ui?: { settings?: { addEventListener?(event: string, listener: () => void): void } };
    refreshComboInNodes?(): Promise<void>;
  };
}

declare module "*/scripts/api.js" {
  export const api: HostApi;
}
